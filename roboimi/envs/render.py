"""Off-screen rendering of a MuJoCo model: one OpenGL context, plain shading, RGB frames.

On Linux the context is EGL's unless `MUJOCO_GL` names another one, whatever MuJoCo itself chose when it was imported:
EGL needs no display and runs on a GPU as well as on Mesa's software rasteriser. The context belongs to the process and
thread that made it, and is made on the first frame.

A renderer that nobody closed frees nothing when Python collects it: the collector runs at any moment and in any thread,
and a context freed in the middle of another renderer's frame leaves that frame black. Its context waits until its own
thread next makes, uses or closes a renderer.

Mesa's software rasteriser and triton, which torch imports when it pleases, each bring an LLVM, and the one that is
loaded second binds to the symbols of the first. Mesa first and triton second is a segmentation fault; the other way
round both work. So triton is loaded before the first context, except in worker processes, which never import torch.
"""

import atexit
import contextlib
import importlib.util
import os
import sys
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import mujoco
import numpy as np

from roboimi.errors import ConfigError, RenderError
from roboimi.worker_process import RENDERS_ONLY

_MAX_GEOMS = 1000
_PLAIN_SHADING = {mujoco.mjtRndFlag.mjRND_SHADOW: 0, mujoco.mjtRndFlag.mjRND_REFLECTION: 0}
_SOFTWARE_RENDERERS = ("llvmpipe", "softpipe", "swrast", "software", "osmesa")


class OffscreenRenderer:
    """Renders the named cameras of one model; close it, or use it as a context manager.

    Args:
        model: compiled with an off-screen buffer (`vis.global_.offheight`, `offwidth`) at least as large as the frame.
        height: of a frame in pixels.
        width: of a frame in pixels.

    Attributes:
        frames_rendered: how many frames this renderer has made.

    Raises:
        RenderError: this machine gives no OpenGL context.
    """

    def __init__(self, model: mujoco.MjModel, height: int, width: int):
        self._resources = None
        self._model = model
        self._rect = mujoco.MjrRect(0, 0, width, height)
        self._scene = mujoco.MjvScene(model, maxgeom=_MAX_GEOMS)
        for flag, value in _PLAIN_SHADING.items():
            self._scene.flags[flag] = value
        self._options = mujoco.MjvOption()
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self.frames_rendered = 0
        _free_abandoned()
        self._resources = _Resources(model, width, height)

    def render(self, data: mujoco.MjData, cameras: Sequence[str]) -> dict[str, np.ndarray]:
        """Render `data` as each of `cameras` sees it: name → (height, width, 3) uint8 RGB, row 0 at the top.

        Raises:
            ConfigError: the model has no camera of that name.
            RenderError: the renderer is closed.
        """
        if self._resources is None:
            raise RenderError("The renderer is closed, so no frame can be rendered: make a new one.")
        camera_ids = {name: _camera_id(self._model, name) for name in cameras}
        _free_abandoned()
        self._resources.gl.make_current()
        return {name: self._frame(data, camera_id) for name, camera_id in camera_ids.items()}

    def close(self) -> None:
        """Free the OpenGL context; calling it again does nothing."""
        resources, self._resources = self._resources, None
        if resources is not None:
            resources.free()
        _free_abandoned()

    def _frame(self, data: mujoco.MjData, camera_id: int) -> np.ndarray:
        self._camera.fixedcamid = camera_id
        everything = mujoco.mjtCatBit.mjCAT_ALL.value
        mujoco.mjv_updateScene(self._model, data, self._options, None, self._camera, everything, self._scene)
        frame = np.empty((self._rect.height, self._rect.width, 3), dtype=np.uint8)
        mujoco.mjr_render(self._rect, self._scene, self._resources.context)
        mujoco.mjr_readPixels(frame, None, self._rect, self._resources.context)
        self.frames_rendered += 1
        return np.ascontiguousarray(frame[::-1])  # OpenGL's first row is the lowest

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        if self._resources is not None:
            _abandoned.append(self._resources)  # one step for the interpreter, so it needs no lock


class _Resources:
    """What lives on the OpenGL side; freed once, and at the latest before the process lets go of its EGL display."""

    def __init__(self, model: mujoco.MjModel, width: int, height: int):
        self.thread = threading.get_ident()
        self.gl = _make_context(width, height)
        try:
            self.context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100.value)
        except mujoco.FatalError as error:
            self.gl.free()
            raise _no_context(error) from error
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self.context)
        # MuJoCo ends the display at exit, and a context freed after that writes a traceback. Handlers run last in,
        # first out.
        atexit.register(self.free)

    def free(self) -> None:
        atexit.unregister(self.free)
        self.gl.make_current()
        self.context.free()
        self.gl.free()


_abandoned: list[_Resources] = []


def _free_abandoned() -> None:
    """Free what collected renderers of this thread left; no frame is being made now."""
    mine = [resources for resources in _abandoned if resources.thread == threading.get_ident()]
    for resources in mine:
        _abandoned.remove(resources)
        resources.free()


def project(
    model: mujoco.MjModel, data: mujoco.MjData, camera: str, points: np.ndarray, frame_size: tuple[int, int]
) -> np.ndarray:
    """Where a fixed camera sees points of the world.

    Args:
        model: has the camera.
        data: the state, after `mj_forward` or a step.
        camera: its name.
        points: (n, 3) in m.
        frame_size: (height, width) of the frame in pixels.

    Returns:
        (n, 2) float64, column and row in pixels; nan for points behind the camera.

    Raises:
        ConfigError: the model has no camera of that name.
    """
    index = _camera_id(model, camera)
    # A camera looks along its own -z axis, with +y up in the image.
    local = (np.asarray(points) - data.cam_xpos[index]) @ data.cam_xmat[index].reshape(3, 3)
    depth = np.where(local[:, 2] < 0, -local[:, 2], np.nan)
    height, width = frame_size
    focal = 0.5 * height / np.tan(np.deg2rad(model.cam_fovy[index]) / 2)
    columns = width / 2 + focal * local[:, 0] / depth
    rows = height / 2 - focal * local[:, 1] / depth
    return np.stack([columns, rows], axis=1)


def _camera_id(model: mujoco.MjModel, name: str) -> int:
    found = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA.value, name)
    if found < 0:
        known = ", ".join(model.camera(index).name for index in range(model.ncam))
        raise ConfigError(f"The scene has no camera {name!r}: choose among {known}.")
    return found


def prepare_for_gl() -> None:
    """Load what must be loaded before OpenGL; every context of this module does it by itself."""
    if (
        "triton._C.libtriton" in sys.modules
        or os.environ.get(RENDERS_ONLY)
        or importlib.util.find_spec("triton") is None
    ):
        return
    with contextlib.suppress(ImportError):  # a triton that does not load cannot clash with anything
        importlib.import_module("triton._C.libtriton")


def gl_renderer() -> str:
    """Name of the OpenGL renderer of this machine, such as "llvmpipe (LLVM 15, 256 bits)" or "NVIDIA H200/PCIe/SSE2".

    Raises:
        RenderError: there is no OpenGL context.
    """
    gl = _make_context(16, 16)
    try:
        from OpenGL import GL

        return GL.glGetString(GL.GL_RENDERER).decode()
    finally:
        gl.free()


def is_software_renderer(name: str | None = None) -> bool:
    """Whether frames are drawn by the CPU; `name` is what `gl_renderer` gave, asked for if not given."""
    name = gl_renderer() if name is None else name
    return any(software in name.lower() for software in _SOFTWARE_RENDERERS)


def _make_context(width: int, height: int) -> Any:
    """Make an OpenGL context current; its absence is reported in many ways, which all mean the same here."""
    prepare_for_gl()
    try:
        kind = importlib.import_module(_context_module()).GLContext
        gl = kind.__new__(kind)
        gl._context = None  # or MuJoCo's destructor writes a traceback when its constructor has failed
        gl.__init__(width, height)
        gl.make_current()
    except Exception as error:
        raise _no_context(error) from error
    return gl


def _context_module() -> str:
    chosen = os.environ.get("MUJOCO_GL", "").strip().lower()
    if sys.platform.startswith("linux") and chosen in {"", "egl"}:
        return "mujoco.egl"
    # Also where MUJOCO_GL switches rendering off: that module then has no GLContext.
    return "mujoco.gl_context"


def _no_context(error: Exception) -> RenderError:
    reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    chosen = os.environ.get("MUJOCO_GL", "")
    return RenderError(
        f"No OpenGL context could be made with MUJOCO_GL={chosen!r} ({reason}): install the packages libegl1 and "
        "libgl1-mesa-dri (`apt install libegl1 libgl1-mesa-dri`) and leave MUJOCO_GL unset."
    )
