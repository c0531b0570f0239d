"""Transfer cube: the right arm picks the cube up and hands it to the left arm, as a Gymnasium environment.

Task, cube range and staged reward are those of the ACT / gym-aloha simulation (Zhao et al., arXiv 2304.13705); what
differs is stated here. The control rate is a parameter (25 Hz by default: at 50 Hz one chunk of actions covers too
little time), success needs the last stage to be *held*, and cameras are rendered only by `render_cameras`, never by
`step`.

State and action (14,), order of `scene.STATE_NAMES`: per arm six joint angles in rad and the gripper's opening, 0
closed to 1 open. An action is an absolute target for the position servos. Cube pose (7,): position x y z in m and
quaternion w x y z.
"""

from collections.abc import Sequence
from typing import Any

import gymnasium
import mujoco
import numpy as np

from roboimi.envs import scene
from roboimi.errors import ConfigError, PolicyOutputError

DEFAULT_CAMERAS = ("front", "left_side", "right_side")
MAX_STAGE = 4
_GRIPPER_INDICES = (6, 13)


class TransferCubeEnv(gymnasium.Env):
    """Two ViperX arms and a cube.

    Observation: `{"agent_pos": (14,) float32, "environment_state": (7,) float32}`. Reward: the stage of this step, 1
    the right gripper touches the cube, 2 and lifts it, 3 the left gripper touches it, 4 and it is off the table.
    `info` holds `stage` (highest so far) and `is_success`. An episode terminates on success and is truncated after
    `time_limit_s`.

    Args:
        control_hz: control steps per second; must divide the physics rate of 500 Hz.
        time_limit_s: length of an episode in seconds of task time.
        success_hold_s: how long stage 4 must last without a gap to count, in seconds.
        require_release: success also needs the right gripper off the cube.
        cameras: what `render` shows, side by side.
        frame_height: height of a rendered frame in pixels.
        frame_width: width of a rendered frame in pixels.
        render_mode: None or "rgb_array".

    Raises:
        ConfigError: a control rate that does not divide 500 Hz, or an unknown camera.
        PolicyOutputError: a malformed action.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 25}  # noqa: RUF012 - Gymnasium reads this class attribute

    def __init__(
        self,
        control_hz: int = 25,
        time_limit_s: float = 8.0,
        success_hold_s: float = 0.2,
        require_release: bool = False,
        cameras: Sequence[str] = DEFAULT_CAMERAS,
        frame_height: int = 320,
        frame_width: int = 320,
        render_mode: str | None = None,
    ):
        self._substeps = _substeps(control_hz)
        self.control_hz = control_hz
        self.metadata = {**type(self).metadata, "render_fps": control_hz}
        self.render_mode = render_mode
        self.max_steps = round(time_limit_s * control_hz)
        self.require_release = require_release
        self._hold_steps = max(1, round(success_hold_s * control_hz))

        self.model = scene.load_model(frame_height, frame_width)
        self.data = mujoco.MjData(self.model)
        self._contacts = _TaskContacts(self.model)
        self.cameras = tuple(cameras)
        self._renderer = None
        self._frame_size = (frame_height, frame_width)

        low, high = _action_bounds(self.model)
        self.action_space = gymnasium.spaces.Box(low, high, dtype=np.float32)
        self.observation_space = gymnasium.spaces.Dict(
            {
                "agent_pos": gymnasium.spaces.Box(-np.inf, np.inf, (len(scene.STATE_NAMES),), np.float32),
                "environment_state": gymnasium.spaces.Box(-np.inf, np.inf, (7,), np.float32),
            }
        )
        self._start_episode()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:
        """Place the arms at home and the cube at a pose drawn from the seed, uniform over 20 x 20 cm.

        Args:
            seed: the whole initial state follows from it alone; without one the next pose of the stream is drawn.
            options: `{"cube_position": (3,)}` in m places the cube there instead.
        """
        super().reset(seed=seed)
        position = (options or {}).get("cube_position")
        if position is None:
            position = (
                self.np_random.uniform(*scene.CUBE_X_RANGE),
                self.np_random.uniform(*scene.CUBE_Y_RANGE),
                scene.CUBE_START_Z,
            )
        home = [*scene.HOME_ARM, scene.HOME_FINGER, -scene.HOME_FINGER] * 2
        mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[:16] = home
        self.data.ctrl[:] = home
        self.data.qpos[16:23] = [*position, 1.0, 0.0, 0.0, 0.0]
        mujoco.mj_forward(self.model, self.data)
        self._start_episode()
        return self._observation(), self._info()

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        """Hold the (14,) absolute targets for one control period; renders nothing."""
        self.data.ctrl[:] = servo_targets(action)
        # Split so that contacts and frames belong to the state that is returned, at no extra evaluation.
        mujoco.mj_step2(self.model, self.data)
        if self._substeps > 1:
            mujoco.mj_step(self.model, self.data, self._substeps - 1)
        mujoco.mj_step1(self.model, self.data)

        contacts = self._contacts.read(self.data)
        reward = contacts.stage
        done = reward == MAX_STAGE and not (self.require_release and not contacts.released)
        self._held = self._held + 1 if done else 0
        self._stage = max(self._stage, reward)
        self._steps += 1
        self._success = self._success or self._held >= self._hold_steps
        truncated = not self._success and self._steps >= self.max_steps
        return self._observation(), float(reward), self._success, truncated, self._info()

    def joint_positions(self) -> np.ndarray:
        """Return the (14,) float64 state: rad, grippers as opening 0 to 1."""
        return _joint_vector(self.data.qpos, scene.normalise_gripper)

    def joint_velocities(self) -> np.ndarray:
        """Return the (14,) float64 velocities: rad/s, grippers in openings per second."""
        return _joint_vector(self.data.qvel, lambda v: v / (scene.GRIPPER_OPEN - scene.GRIPPER_CLOSED))

    def cube_pose(self) -> np.ndarray:
        """Return the (7,) float64 cube pose: x y z in m, quaternion w x y z."""
        return self.data.qpos[16:23].copy()

    def end_effector_pixels(self, camera: str) -> np.ndarray:
        """Where a camera sees the two grippers: (2, 2) float64, column and row in pixels of a frame, left arm first.

        Raises:
            ConfigError: the scene has no camera of that name.
        """
        from roboimi.envs.render import project

        fingers = [[f"vx300s_{arm}/{side}_finger_link" for side in ("left", "right")] for arm in scene.ARMS]
        points = np.array([np.mean([self.data.body(name).xpos for name in pair], axis=0) for pair in fingers])
        return project(self.model, self.data, camera, points, self._frame_size)

    def render_cameras(self, cameras: Sequence[str]) -> dict[str, np.ndarray]:
        """Render the current state: camera name → (frame_height, frame_width, 3) uint8 RGB.

        Raises:
            ConfigError: the scene has no camera of that name.
            RenderError: no OpenGL context can be made on this machine.
        """
        if self._renderer is None:
            from roboimi.envs.render import OffscreenRenderer

            self._renderer = OffscreenRenderer(self.model, *self._frame_size)
        return self._renderer.render(self.data, cameras)

    def render(self) -> np.ndarray | None:
        """Return the configured cameras side by side, (frame_height, V * frame_width, 3) uint8."""
        if self.render_mode is None:
            return None
        frames = self.render_cameras(self.cameras)
        return np.concatenate([frames[name] for name in self.cameras], axis=1)

    def close(self) -> None:
        """Free the OpenGL context, if one was made."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    def _start_episode(self) -> None:
        self._steps = self._held = self._stage = 0
        self._success = False

    def _observation(self) -> dict[str, np.ndarray]:
        return {
            "agent_pos": self.joint_positions().astype(np.float32),
            "environment_state": self.cube_pose().astype(np.float32),
        }

    def _info(self) -> dict[str, Any]:
        return {"is_success": self._success, "stage": self._stage}


class _Contacts:
    """What touches the cube in one state."""

    def __init__(self, left: bool, right: bool, table: bool, released: bool):
        self.left, self.right, self.table, self.released = left, right, table, released

    @property
    def stage(self) -> int:
        if self.left:
            return 3 if self.table else 4
        if self.right:
            return 1 if self.table else 2
        return 0


class _TaskContacts:
    """Reads the cube's contacts by geom id; as in gym-aloha the reward looks at one finger of each gripper."""

    def __init__(self, model: mujoco.MjModel):
        self._cube, self._table, self._left, self._right, self._right_other = (
            model.geom(name).id
            for name in (
                "red_box",
                "table",
                "vx300s_left/10_left_gripper_finger",
                "vx300s_right/10_right_gripper_finger",
                "vx300s_right/10_left_gripper_finger",
            )
        )

    def read(self, data: mujoco.MjData) -> _Contacts:
        pairs = data.contact.geom[: data.ncon]
        touching = pairs[(pairs == self._cube).any(axis=1)]
        left, right, other, table = (
            bool((touching == geom).any()) for geom in (self._left, self._right, self._right_other, self._table)
        )
        return _Contacts(left=left, right=right, table=table, released=not (right or other))


def servo_targets(action: np.ndarray) -> np.ndarray:
    """Turn a (14,) action into the (16,) targets of the position servos; each gripper drives two opposed fingers.

    Raises:
        PolicyOutputError: the action has another shape or is not finite.
    """
    action = np.asarray(action, dtype=np.float64)
    if action.shape != (len(scene.STATE_NAMES),) or not np.isfinite(action).all():
        raise PolicyOutputError(
            f"An action of this task is {len(scene.STATE_NAMES)} finite numbers, got shape {action.shape} with "
            f"{int((~np.isfinite(action)).sum())} non-finite values: check the policy's output and its normaliser."
        )
    left, right = (scene.finger_position(action[i]) for i in _GRIPPER_INDICES)
    return np.concatenate([action[:6], [left, -left], action[7:13], [right, -right]])


def _joint_vector(values: np.ndarray, gripper) -> np.ndarray:
    return np.concatenate([values[:6], [gripper(values[6])], values[8:14], [gripper(values[14])]])


def _action_bounds(model: mujoco.MjModel) -> tuple[np.ndarray, np.ndarray]:
    low, high = model.actuator_ctrlrange.T.copy()
    low, high = (np.concatenate([bound[:7], bound[8:15]]) for bound in (low, high))
    for index in _GRIPPER_INDICES:
        low[index], high[index] = 0.0, 1.0
    return low.astype(np.float32), high.astype(np.float32)


def _substeps(control_hz: int) -> int:
    physics_hz = round(1 / scene.PHYSICS_TIMESTEP)
    if control_hz <= 0 or physics_hz % control_hz:
        raise ConfigError(
            f"control_hz is {control_hz}, but the physics runs at {physics_hz} Hz: choose a divisor such as 10, 20, 25 "
            "or 50."
        )
    return physics_hz // int(control_hz)
