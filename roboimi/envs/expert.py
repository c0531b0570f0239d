"""The scripted expert: a time table of gripper poses for both arms, turned into joint targets in closed form.

The right arm picks the cube up from above and carries it to the middle, where it holds it horizontally; the left arm,
its gripper rolled by a quarter turn so that the four fingers do not meet, takes it; the right arm opens and withdraws.

Targets depend on the cube's first pose and on time alone. That makes them clean labels: a policy trained on them learns
to return to the nominal path. For demonstrations that also *visit* states off that path, `OrnsteinUhlenbeckNoise` is
added to what the servos are told while the label stays clean (DART, Laskey et al., arXiv 1703.09327, with correlated
noise).
"""

from dataclasses import dataclass

import numpy as np

from roboimi.envs import kinematics, scene

HANDOVER = np.array([0.0, 0.5, 0.25])
# The left gripper waits with its tips just short of the cube (a longer last stretch swings it up by 4 cm, since the
# joints lag their targets unequally), then reaches past the cube's centre: with noise of 0.01 rad on every joint a
# grasp by the tips lost 16 cubes of 200, this one none of 400. The held cube sags by 4 mm.
WAIT_OFFSET = np.array([-0.08, 0.0, -0.004])
GRASP_OFFSET = np.array([0.028, 0.0, -0.004])
DOWN, LEVEL = np.pi / 2, 0.0
OPEN, CLOSED = 1.0, 0.0
HOME_OPENING = float(scene.normalise_gripper(scene.HOME_FINGER))


@dataclass(frozen=True)
class Waypoint:
    """Where one gripper is at `time` (s at duration_scale 1): pinch point in m, pitch and roll in rad, opening."""

    time: float
    position: tuple[float, float, float]
    pitch: float
    roll: float
    opening: float


def right_arm_waypoints(cube: np.ndarray) -> list[Waypoint]:
    """Pick the cube at `cube` (x, y, ... in m) from above, carry it to the handover point, let go and withdraw."""
    x, y = float(cube[0]), float(cube[1])
    turn = float(kinematics.azimuth("right", np.array([x, y, 0.0])))
    hx, hy, hz = HANDOVER
    return [
        _home("right"),
        Waypoint(1.2, (x, y, 0.10), DOWN, turn, OPEN),
        Waypoint(1.9, (x, y, 0.02), DOWN, turn, OPEN),
        Waypoint(2.4, (x, y, 0.02), DOWN, turn, CLOSED),
        Waypoint(3.0, (x, y, 0.12), DOWN, turn, CLOSED),
        Waypoint(4.2, (hx, hy, hz), LEVEL, 0.0, CLOSED),
        Waypoint(5.6, (hx, hy, hz), LEVEL, 0.0, CLOSED),
        Waypoint(6.1, (hx, hy, hz), LEVEL, 0.0, OPEN),
        Waypoint(6.7, (hx + 0.12, hy, hz), LEVEL, 0.0, OPEN),
    ]


def left_arm_waypoints() -> list[Waypoint]:
    """Wait beside the handover point with the gripper rolled, take the cube and hold it."""
    wait = tuple((HANDOVER + WAIT_OFFSET).tolist())
    grasp = tuple((HANDOVER + GRASP_OFFSET).tolist())
    return [
        _home("left"),
        Waypoint(0.8, *_pose_at_home("left"), HOME_OPENING),
        Waypoint(2.8, wait, LEVEL, np.pi / 2, OPEN),
        Waypoint(4.2, wait, LEVEL, np.pi / 2, OPEN),
        Waypoint(5.0, grasp, LEVEL, np.pi / 2, OPEN),
        Waypoint(5.5, grasp, LEVEL, np.pi / 2, CLOSED),
    ]


class ScriptedExpert:
    """Joint targets for one episode.

    Args:
        cube_position: where the cube is at the start, (3,) or a (7,) pose, m.
        control_hz: control steps per second.
        duration_scale: 1 is the leisurely time table of 6.7 s; smaller is faster.

    Attributes:
        actions: (N, 14) absolute targets, one per control step, float32; rad and gripper openings.

    Raises:
        kinematics.UnreachableError: the cube is outside the right arm's working area.
    """

    def __init__(self, cube_position: np.ndarray, control_hz: int = 25, duration_scale: float = 0.7):
        tables = {"left": left_arm_waypoints(), "right": right_arm_waypoints(cube_position)}
        end = max(table[-1].time for table in tables.values())
        steps = int(np.ceil(end * duration_scale * control_hz))
        # The target for the step from time i to i+1 is the pose at time i+1.
        times = np.arange(1, steps + 1) / (control_hz * duration_scale)
        self.actions = np.concatenate([follow(arm, tables[arm], times) for arm in scene.ARMS], axis=1).astype(
            np.float32
        )

    def action(self, step: int) -> np.ndarray:
        """Return the (14,) target for control step `step`; after the last one the final pose is held."""
        return self.actions[min(step, len(self.actions) - 1)].copy()


class OrnsteinUhlenbeckNoise:
    """Correlated joint noise with an exact discretisation, so its strength does not depend on the control rate.

    Args:
        rng: source of randomness; one per episode.
        control_hz: control steps per second.
        std: stationary standard deviation in rad.
        correlation_s: time in s over which the noise forgets itself (by 1/e).
    """

    def __init__(self, rng: np.random.Generator, control_hz: int = 25, std: float = 0.01, correlation_s: float = 0.2):
        self._rng = rng
        self._keep = np.exp(-1.0 / (control_hz * correlation_s))
        self._kick = std * np.sqrt(1 - self._keep**2)
        self._value = np.zeros(len(scene.STATE_NAMES))
        # Grippers stay clean: their opening is not an angle, and a squeezed cube is what must not be shaken.
        self._mask = np.array([name.split("_", 1)[1] != "gripper" for name in scene.STATE_NAMES], dtype=np.float64)

    def sample(self) -> np.ndarray:
        """Return the next (14,) offset in rad, zero at the grippers; the process starts from zero."""
        self._value = self._keep * self._value + self._kick * self._rng.standard_normal(self._value.shape)
        return (self._value * self._mask).astype(np.float32)


def follow(arm: str, table: list[Waypoint], times: np.ndarray) -> np.ndarray:
    """Interpolate a time table at `times` (N,) s with minimum-jerk segments → (N, 7) joint targets and opening."""
    knots = np.array([point.time for point in table])
    values = np.array([[*point.position, point.pitch, point.roll, point.opening] for point in table])
    index = np.clip(np.searchsorted(knots, times, side="right") - 1, 0, len(table) - 2)
    share = np.clip((times - knots[index]) / (knots[index + 1] - knots[index]), 0.0, 1.0)
    # Zero velocity and acceleration at both ends of a segment (Flash & Hogan 1985).
    blend = (10 * share**3 - 15 * share**4 + 6 * share**5)[:, None]
    pose = (1 - blend) * values[index] + blend * values[index + 1]
    joints = kinematics.inverse(arm, pose[:, :3], pose[:, 3], pose[:, 4])
    return np.concatenate([joints, pose[:, 5:]], axis=1)


def _pose_at_home(arm: str) -> tuple[tuple[float, float, float], float, float]:
    position, pitch, roll = kinematics.forward(arm, np.array(scene.HOME_ARM))
    return tuple(position.tolist()), float(pitch), float(roll)


def _home(arm: str) -> Waypoint:
    return Waypoint(0.0, *_pose_at_home(arm), HOME_OPENING)
