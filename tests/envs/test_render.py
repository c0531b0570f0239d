"""Frames show the scene the right way up, the cube from every start, and a machine without GL is told what it lacks."""

import gc
import importlib.util
import os
import subprocess
import sys
import threading

import mujoco
import numpy as np
import pytest

from roboimi.envs import render
from roboimi.envs.render import gl_renderer, is_software_renderer
from roboimi.envs.transfer_cube import DEFAULT_CAMERAS, TransferCubeEnv
from roboimi.errors import ConfigError, RenderError

RENDER_ONE_FRAME = """
from roboimi.errors import RoboimiError
try:
    from roboimi.envs.transfer_cube import TransferCubeEnv
    env = TransferCubeEnv(frame_height=32, frame_width=32)
    env.reset(seed=0)
    print("frame", env.render_cameras(["top"])["top"].shape)
except RoboimiError as error:
    print(type(error).__name__, error.exit_code, error)
"""


@pytest.fixture(scope="module")
def env():
    env = TransferCubeEnv()
    yield env
    env.close()


def red_pixels(frame):
    red, green, blue = np.moveaxis(frame.astype(int), -1, 0)
    return np.argwhere((red - green > 60) & (red - blue > 60))


def place(env, x, y):
    env.reset(seed=0, options={"cube_position": (x, y, 0.02)})


def run_without(**variables):
    environment = {name: value for name, value in os.environ.items() if name != "MUJOCO_GL"} | variables
    return subprocess.run(
        [sys.executable, "-c", RENDER_ONE_FRAME], capture_output=True, text=True, env=environment, check=True
    )


def test_frames_have_the_size_and_type_asked_for():
    env = TransferCubeEnv(frame_height=48, frame_width=80)
    env.reset(seed=0)
    frames = env.render_cameras(["top", "front"])
    env.close()
    assert list(frames) == ["top", "front"]
    for frame in frames.values():
        assert frame.shape == (48, 80, 3)
        assert frame.dtype == np.uint8
        assert frame.flags.c_contiguous
        assert frame.std() > 1


@pytest.mark.parametrize("y", [0.4, 0.5, 0.6])
@pytest.mark.parametrize("x", [0.0, 0.1, 0.2])
def test_every_default_camera_sees_the_cube_at_every_start(env, x, y):
    place(env, x, y)
    for name, frame in env.render_cameras(DEFAULT_CAMERAS).items():
        assert len(red_pixels(frame)) > 400, name
        rows, columns = red_pixels(frame).T
        assert rows.min() > 0, name
        assert rows.max() < 319, name
        assert columns.min() > 0, name
        assert columns.max() < 319, name


def test_frames_are_the_right_way_up(env):
    """From the front, right on the table is right in the image and farther away is higher."""
    place(env, 0.0, 0.4)
    near_left = red_pixels(env.render_cameras(["front"])["front"]).mean(axis=0)
    place(env, 0.2, 0.6)
    far_right = red_pixels(env.render_cameras(["front"])["front"]).mean(axis=0)
    assert far_right[0] < near_left[0] - 20
    assert far_right[1] > near_left[1] + 20


@pytest.mark.parametrize("camera", DEFAULT_CAMERAS)
def test_a_projected_point_is_where_the_frame_shows_it(env, camera):
    for x, y in ((0.0, 0.4), (0.2, 0.6)):
        place(env, x, y)
        ((column, row),) = render.project(env.model, env.data, camera, env.cube_pose()[None, :3], (320, 320))
        shown_row, shown_column = red_pixels(env.render_cameras([camera])[camera]).mean(axis=0)
        assert abs(column - shown_column) < 3
        assert abs(row - shown_row) < 3
    behind = 2 * env.data.camera(camera).xpos - env.cube_pose()[:3]
    assert np.isnan(render.project(env.model, env.data, camera, behind[None], (320, 320))).all()


def test_the_end_effectors_move_with_their_arms(env):
    env.reset(seed=0)
    left, right = env.end_effector_pixels("front")
    action = env.joint_positions()
    action[0] += 0.3
    for _ in range(15):
        env.step(action)
    moved_left, moved_right = env.end_effector_pixels("front")
    assert np.linalg.norm(moved_left - left) > 15
    assert np.linalg.norm(moved_right - right) < 5
    assert left[0] < right[0]


def test_same_state_same_frame_in_a_fresh_environment(env):
    env.reset(seed=11)
    first = env.render_cameras(["front"])["front"]
    env.render_cameras(["top"])
    other = TransferCubeEnv()
    other.reset(seed=11)
    np.testing.assert_array_equal(other.render_cameras(["front"])["front"], first)
    other.close()


def test_shadows_and_reflections_are_off(env):
    """The table is evenly grey around the cube: the brightest and darkest table pixel next to it differ little."""
    place(env, 0.1, 0.5)
    frame = env.render_cameras(["front"])["front"]
    rows, columns = red_pixels(frame).T
    below = frame[rows.max() + 3 : rows.max() + 25, columns.min() - 30 : columns.max() + 30].astype(int)
    assert np.ptp(below[..., 0]) <= 4


def test_unknown_camera_names_the_known_ones(env):
    with pytest.raises(ConfigError, match=r"no camera 'nowhere'.* top,.* front,"):
        env.render_cameras(["nowhere"])


def test_two_environments_render_in_turn(env):
    other = TransferCubeEnv(frame_height=64, frame_width=64)
    other.reset(seed=1)
    place(env, 0.1, 0.5)
    before = env.render_cameras(["front"])["front"]
    small = other.render_cameras(["front"])["front"]
    np.testing.assert_array_equal(env.render_cameras(["front"])["front"], before)
    other.close()
    np.testing.assert_array_equal(env.render_cameras(["front"])["front"], before)
    assert small.shape == (64, 64, 3)


def test_closing_twice_is_harmless_and_a_closed_environment_renders_again():
    env = TransferCubeEnv(frame_height=32, frame_width=32)
    env.reset(seed=0)
    frame = env.render_cameras(["top"])["top"]
    renderer = env._renderer
    env.close()
    env.close()
    with pytest.raises(RenderError, match="closed"):
        renderer.render(env.data, ["top"])
    np.testing.assert_array_equal(env.render_cameras(["top"])["top"], frame)
    env.close()


@pytest.fixture
def collector_off():
    """Python's collector runs when the test says so, and not before."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("collector_off")
def test_a_renderer_that_is_collected_in_the_middle_of_a_frame_leaves_it_alone(env, monkeypatch):
    """Nobody closed it, and Python collects it when it likes: its context must wait, or the frame would be black."""
    place(env, 0.1, 0.5)
    before = env.render_cameras(["front"])["front"]
    other = TransferCubeEnv(frame_height=32, frame_width=32)
    other.reset(seed=0)
    other.render_cameras(["front"])
    other.itself = other  # a cycle: only the collector frees it
    del other
    update_scene = mujoco.mjv_updateScene

    def collect_first(*arguments):
        gc.collect()
        return update_scene(*arguments)

    monkeypatch.setattr(mujoco, "mjv_updateScene", collect_first)
    np.testing.assert_array_equal(env.render_cameras(["front"])["front"], before)
    assert len(render._abandoned) == 1
    np.testing.assert_array_equal(env.render_cameras(["front"])["front"], before)
    assert render._abandoned == []


@pytest.mark.usefixtures("collector_off")
def test_a_renderer_that_another_thread_collects_waits_for_its_own(env):
    place(env, 0.1, 0.5)
    before = env.render_cameras(["front"])["front"]
    other = TransferCubeEnv(frame_height=32, frame_width=32)
    other.reset(seed=0)
    other.render_cameras(["front"])
    other.itself = other
    del other
    collector = threading.Thread(target=gc.collect)
    collector.start()
    collector.join()
    np.testing.assert_array_equal(env.render_cameras(["front"])["front"], before)
    assert render._abandoned == []


def test_renderer_names_itself_and_software_is_recognised():
    assert len(gl_renderer()) > 3
    assert is_software_renderer("llvmpipe (LLVM 15.0.6, 256 bits)")
    assert not is_software_renderer("NVIDIA H200/PCIe/SSE2")
    assert is_software_renderer() == is_software_renderer(gl_renderer())


def test_works_without_any_setting_and_ends_silently_though_never_closed():
    done = run_without()
    assert done.stdout.strip() == "frame (32, 32, 3)"
    assert done.stderr == ""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_triton_can_be_imported_after_a_frame_was_rendered():
    """Both bring an LLVM; with Mesa's loaded first, importing triton was a segmentation fault."""
    code = f"{RENDER_ONE_FRAME}\nimport triton._C.libtriton\nprint('alive')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()[-1:]) == (0, ["alive"]), done.stderr


@pytest.mark.parametrize(
    ("variables", "error"),
    [
        ({"__EGL_VENDOR_LIBRARY_FILENAMES": "/nonexistent"}, "RenderError 5 No OpenGL context"),
        ({"MUJOCO_EGL_DEVICE_ID": "99"}, "RenderError 5 No OpenGL context"),
        ({"MUJOCO_GL": "off"}, "RenderError 5 No OpenGL context"),
        ({"MUJOCO_GL": "nonsense"}, "RenderError 5 MuJoCo cannot be loaded with MUJOCO_GL='nonsense'"),
    ],
)
def test_no_gl_is_one_sentence_that_names_the_packages(variables, error):
    done = run_without(**variables)
    assert done.stdout.startswith(error)
    assert "libegl1" in done.stdout
    assert "libgl1-mesa-dri" in done.stdout
    assert "MUJOCO_GL" in done.stdout
    assert done.stdout.count("\n") == 1
    assert "Traceback" not in done.stderr
