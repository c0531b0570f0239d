r"""Closed-form kinematics of one ViperX 300s arm, restricted to motions in a vertical plane.

With forearm_roll held at 0 the waist turns a vertical plane, in which shoulder, elbow and wrist_angle are a three-link
chain, and wrist_rotate rolls the gripper about its own axis. So a pinch point, a pitch and a roll have one elbow-up
solution, without iterating, and smooth targets give smooth joints (a 6-DoF numerical solver jumps wherever wrist_angle
passes 0)::

            elbow o-------------o wrist_angle
                 / 0.300 m       \  0.212 m
         0.306  /                 o pinch point, between the fingertips
               o shoulder, 0.127 m above the table

Pitch is 0 when the gripper points away from its base along the horizontal and pi/2 when it points straight down; joint
order is `scene.ARM_JOINTS`, rad; positions are world coordinates in m. Arrays broadcast over leading axes.
"""

import numpy as np

from roboimi.errors import RoboimiError

BASE_POSITION = {"left": np.array([-0.469, 0.5, 0.0]), "right": np.array([0.469, 0.5, 0.0])}
# The right arm is the left one turned by half a turn about z: the sign of its local x and y.
_FACING = {"left": 1.0, "right": -1.0}

SHOULDER_HEIGHT = 0.079 + 0.04805
_UPPER = np.array([0.05955, 0.3])  # shoulder → elbow in the plane (forward, up) with the shoulder joint at 0
UPPER_LENGTH = float(np.hypot(*_UPPER))
UPPER_PITCH = float(-np.arctan2(_UPPER[1], _UPPER[0]))
FOREARM_LENGTH = 0.2 + 0.1
HAND_LENGTH = 0.069744 + 0.142  # wrist_angle → gripper link → pinch point

JOINT_LIMITS = np.array(
    [
        [-3.14158, 3.14158],
        [-1.85005, 1.25664],
        [-1.76278, 1.6057],
        [-3.14158, 3.14158],
        [-1.8675, 2.23402],
        [-3.14158, 3.14158],
    ]
)


class UnreachableError(RoboimiError):
    """A gripper pose outside the arm's reach or its joint limits."""

    failure_class = "unreachable"


def azimuth(arm: str, position: np.ndarray) -> np.ndarray:
    """Waist angle (...,) in rad that turns `arm` towards `position` (..., 3)."""
    local = _FACING[arm] * (np.asarray(position) - BASE_POSITION[arm])
    return np.arctan2(local[..., 1], local[..., 0])


def inverse(arm: str, position: np.ndarray, pitch: np.ndarray, roll: np.ndarray) -> np.ndarray:
    """Return the elbow-up joint angles (..., 6) that bring the pinch point of `arm` to `position`.

    Args:
        arm: "left" or "right".
        position: pinch point, (..., 3).
        pitch: (...,) rad, 0 horizontal, pi/2 straight down.
        roll: (...,) rad about the gripper's axis; with pitch pi/2, a roll equal to the azimuth closes the
            fingers along y.

    Raises:
        UnreachableError: some pose is too far, too near, or beyond a joint limit.
    """
    position, pitch, roll = np.asarray(position, dtype=np.float64), np.asarray(pitch), np.asarray(roll)
    waist = azimuth(arm, position)
    offset = position - BASE_POSITION[arm]
    forward = np.hypot(offset[..., 0], offset[..., 1]) - HAND_LENGTH * np.cos(pitch)
    up = offset[..., 2] - SHOULDER_HEIGHT + HAND_LENGTH * np.sin(pitch)

    # Triangle shoulder, elbow, wrist: law of cosines for the angle at the shoulder, elbow above the line to the wrist.
    distance = np.hypot(forward, up)
    cosine = (UPPER_LENGTH**2 + distance**2 - FOREARM_LENGTH**2) / (2 * UPPER_LENGTH * distance)
    _require_reach(arm, position, np.abs(cosine) <= 1)
    upper_pitch = np.arctan2(-up, forward) - np.arccos(cosine)
    forearm_pitch = np.arctan2(-up - UPPER_LENGTH * np.sin(upper_pitch), forward - UPPER_LENGTH * np.cos(upper_pitch))
    shoulder = upper_pitch - UPPER_PITCH
    joints = np.broadcast_arrays(
        waist, _wrap(shoulder), _wrap(forearm_pitch - shoulder), 0.0, _wrap(pitch - forearm_pitch), roll
    )
    joints = np.stack(joints, axis=-1)
    within = (joints >= JOINT_LIMITS[:, 0]) & (joints <= JOINT_LIMITS[:, 1])
    _require_reach(arm, position, within.all(axis=-1))
    return joints


def forward(arm: str, joints: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return pinch point (..., 3), pitch (...,) and roll (...,) of joint angles (..., 6) whose forearm_roll is 0."""
    joints = np.asarray(joints, dtype=np.float64)
    waist, shoulder, elbow, _, wrist, roll = np.moveaxis(joints, -1, 0)
    links = (
        (UPPER_LENGTH, shoulder + UPPER_PITCH),
        (FOREARM_LENGTH, shoulder + elbow),
        (HAND_LENGTH, shoulder + elbow + wrist),
    )
    radius = sum(length * np.cos(angle) for length, angle in links)
    height = SHOULDER_HEIGHT - sum(length * np.sin(angle) for length, angle in links)
    facing = _FACING[arm]
    offset = np.stack([facing * radius * np.cos(waist), facing * radius * np.sin(waist), height], axis=-1)
    return BASE_POSITION[arm] + offset, shoulder + elbow + wrist, roll


def _wrap(angle: np.ndarray) -> np.ndarray:
    return (angle + np.pi) % (2 * np.pi) - np.pi


def _require_reach(arm: str, position: np.ndarray, reachable: np.ndarray) -> None:
    if not np.all(reachable):
        where = np.broadcast_to(position, (*np.shape(reachable), 3))[~np.asarray(reachable)][0]
        raise UnreachableError(
            f"The {arm} arm cannot bring its gripper to x={where[0]:.3f} y={where[1]:.3f} z={where[2]:.3f} m at this "
            "pitch: move the target nearer to the arm's working area."
        )
