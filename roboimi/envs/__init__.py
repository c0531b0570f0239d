"""MuJoCo tasks as Gymnasium environments; importing this package registers `roboimi/TransferCube-v0`."""

import os

import gymnasium

from roboimi.errors import RenderError

try:
    import mujoco  # noqa: F401
except (AttributeError, ImportError, RuntimeError) as error:
    # While it is imported, MuJoCo loads the OpenGL library that this variable names, even if nothing is ever rendered.
    chosen = os.environ.get("MUJOCO_GL", "")
    raise RenderError(
        f"MuJoCo cannot be loaded with MUJOCO_GL={chosen!r} ({error}): unset that variable, and install the packages "
        "libegl1 and libgl1-mesa-dri."
    ) from error

TRANSFER_CUBE = "roboimi/TransferCube-v0"

# A string, not the class: the environment's module is imported when the first environment is made.
gymnasium.register(id=TRANSFER_CUBE, entry_point="roboimi.envs.transfer_cube:TransferCubeEnv")
