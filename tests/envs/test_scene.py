"""The scene: found without importing the package that carries it, compiled with our settings, cameras where we say."""

import subprocess
import sys
from importlib import metadata

import mujoco
import numpy as np
import pytest

from roboimi.envs import scene


def test_loading_the_scene_imports_neither_gym_aloha_nor_dm_control():
    program = (
        "import sys; from roboimi.envs.transfer_cube import TransferCubeEnv; TransferCubeEnv().reset(seed=0);"
        "print(sorted(name for name in sys.modules if name.split('.')[0] in {'gym_aloha', 'dm_control'}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_physics_and_shading_settings():
    model = scene.load_model(frame_height=96, frame_width=128)
    assert model.opt.timestep == 0.002
    assert (model.vis.quality.offsamples, model.vis.quality.shadowsize) == (0, 0)
    assert (model.vis.global_.offheight, model.vis.global_.offwidth) == (96, 128)


def test_own_cameras_are_added_and_the_original_ones_stay():
    model = scene.load_model(16, 16)
    names = {model.camera(index).name for index in range(model.ncam)}
    assert {"front", "left_side", "right_side", "top", "left_wrist", "right_wrist"} <= names


@pytest.mark.parametrize("name", sorted(scene.ADDED_CAMERAS))
def test_camera_looks_at_its_target_with_the_horizon_level(name):
    model = scene.load_model(16, 16)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    camera = scene.ADDED_CAMERAS[name]
    right, up, backward = data.cam(name).xmat.reshape(3, 3).T
    distance = np.linalg.norm(np.subtract(camera.target, camera.position))
    np.testing.assert_allclose(data.cam(name).xpos - distance * backward, camera.target, atol=1e-9)
    assert right[2] == pytest.approx(0.0, abs=1e-9)
    assert up[2] > 0


def test_straight_down_camera_has_a_rotation():
    quaternion = scene.look_at((0.1, 0.5, 1.0), (0.1, 0.5, 0.0))
    np.testing.assert_allclose(quaternion, [1.0, 0.0, 0.0, 0.0], atol=1e-12)


def test_gripper_opening_round_trip():
    openings = np.array([0.0, 0.3, 1.0])
    np.testing.assert_allclose(scene.finger_position(openings)[[0, 2]], [0.01844, 0.058])
    np.testing.assert_allclose(scene.normalise_gripper(scene.finger_position(openings)), openings, atol=1e-12)


def test_missing_distribution_says_what_to_install(monkeypatch):
    def absent(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", absent)
    with pytest.raises(scene.SceneAssetsError, match="pip install --no-deps gym-aloha"):
        scene.scene_path()


def test_missing_file_says_to_reinstall(monkeypatch):
    monkeypatch.setattr(scene, "SCENE_FILE", "gym_aloha/assets/absent.xml")
    with pytest.raises(scene.SceneAssetsError, match=r"absent\.xml is missing.*force-reinstall"):
        scene.scene_path()
