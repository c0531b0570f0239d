"""Protects the stand-in's training data: a cube that cannot be inferred from the arms, labels that fit the pictures,
and scenes that follow from the seed alone."""

import mujoco
import numpy as np
import pytest

from roboimi.envs import scene
from roboimi.envs.images import resize_frame
from roboimi.envs.transfer_cube import DEFAULT_CAMERAS, TransferCubeEnv
from roboimi.errors import ConfigError
from roboimi.vla.linear_probe import linear_probe
from roboimi.vla.standin.scenes import (
    BLOCK,
    IMAGE_SIZE,
    KINDS,
    RESTING_Z,
    SPAWN_MARGIN,
    cube_mask,
    render_scenes,
    sample_block,
)


@pytest.fixture
def env():
    env = TransferCubeEnv(require_release=True)
    yield env
    env.close()


def _show(env: TransferCubeEnv, qpos: np.ndarray, camera: str) -> np.ndarray:
    env.data.qpos[:23] = qpos
    mujoco.mj_forward(env.model, env.data)
    return resize_frame(env.render_cameras([camera])[camera], (IMAGE_SIZE, IMAGE_SIZE))


def test_blocks_follow_from_the_seed_alone(env):
    qpos, kind = sample_block(env, seed=3, block=1)
    env.reset(seed=99)
    again, kind_again = sample_block(TransferCubeEnv(require_release=True), seed=3, block=1)
    np.testing.assert_array_equal(qpos, again)
    np.testing.assert_array_equal(kind, kind_again)
    assert not np.allclose(qpos, sample_block(env, seed=3, block=2)[0])
    assert not np.allclose(qpos, sample_block(env, seed=4, block=1)[0])


def test_renders_follow_from_the_seed_alone(few_scenes, tmp_path):
    shorter = render_scenes(tmp_path, BLOCK, seed=11)
    np.testing.assert_array_equal(shorter.images, few_scenes.images[:BLOCK])
    np.testing.assert_array_equal(shorter.cube, few_scenes.cube[:BLOCK])


def test_a_teleported_cube_cannot_be_inferred_from_the_arms(env):
    blocks = [sample_block(env, seed=5, block=block) for block in range(24)]
    qpos, kind = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    groups = np.repeat(np.arange(len(blocks)), BLOCK)

    def explained(*kinds: str) -> np.ndarray:
        rows = np.isin(kind, [KINDS.index(name) for name in kinds])
        return np.array(linear_probe(qpos[rows, :16], qpos[rows, 16:18], groups[rows]).r2)

    assert (explained("home", "reaching") < 0.05).all()
    # The negative control: in true frames the gripper is often at the cube, and the same probe finds that out.
    assert (explained("true") > 0.3).all()


def test_cubes_on_the_table_cover_the_spawn_range_and_a_margin(env):
    blocks = [sample_block(env, seed=6, block=block) for block in range(12)]
    qpos = np.concatenate([qpos[np.isin(kind, [0, 1])] for qpos, kind in blocks])
    for axis, (low, high) in ((16, scene.CUBE_X_RANGE), (17, scene.CUBE_Y_RANGE)):
        assert low - SPAWN_MARGIN <= qpos[:, axis].min() < low
        assert high < qpos[:, axis].max() <= high + SPAWN_MARGIN
    assert qpos[:, 18].min() == RESTING_Z
    assert qpos[:, 18].max() <= scene.CUBE_START_Z


def test_labels_fit_the_pictures(env, few_scenes):
    """The labelled position, projected by the camera's own geometry, is where the red pixels are."""
    mujoco.mj_forward(env.model, env.data)
    rows = np.flatnonzero(few_scenes.of_kind("home"))
    for view, camera in enumerate(few_scenes.cameras):
        index = env.model.camera(camera).id
        local = (few_scenes.cube[rows] - env.data.cam_xpos[index]) @ env.data.cam_xmat[index].reshape(3, 3)
        focal = 0.5 * IMAGE_SIZE / np.tan(np.radians(env.model.cam_fovy[index]) / 2)
        aspect = env.model.vis.global_.offwidth / env.model.vis.global_.offheight  # the resize makes frames square
        across = IMAGE_SIZE / 2 + focal / aspect * local[:, 0] / -local[:, 2]
        down = IMAGE_SIZE / 2 - focal * local[:, 1] / -local[:, 2]
        for row, u, v in zip(rows, across, down, strict=True):
            found_v, found_u = np.argwhere(cube_mask(few_scenes.images[row, view])).mean(0)
            assert abs(found_u - u) < 3
            assert abs(found_v - v) < 3


def test_only_the_cube_counts_as_red(env):
    env.model.geom("red_box").rgba[3] = 0.0
    for qpos in sample_block(env, seed=7, block=0)[0][::4]:
        for camera in DEFAULT_CAMERAS:
            assert not cube_mask(_show(env, qpos, camera)).any()


def test_images_are_what_a_policy_sees(env, few_scenes):
    """Frame size, GL settings, resize and the order of views are those of the environment's own rendering."""
    qpos = sample_block(env, seed=11, block=0)[0]
    for row in (0, 10, 25):
        for view, camera in enumerate(DEFAULT_CAMERAS):
            np.testing.assert_array_equal(few_scenes.images[row, view], _show(env, qpos[row], camera))


def test_every_view_sees_most_cubes(few_scenes):
    assert few_scenes.visible[few_scenes.of_kind("home")].all()
    assert (few_scenes.visible.mean(0) > 0.9).all()


def test_renders_are_reused_when_whole_and_redone_when_not(tmp_path):
    render_scenes(tmp_path, BLOCK, seed=1, cameras=["front"])
    (folder,) = tmp_path.iterdir()
    written = (folder / "images.npy").stat().st_mtime_ns
    render_scenes(tmp_path, BLOCK, seed=1, cameras=["front"])
    assert (folder / "images.npy").stat().st_mtime_ns == written
    (folder / "SCENES.json").unlink()  # as after a kill
    render_scenes(tmp_path, BLOCK, seed=1, cameras=["front"])
    assert (folder / "images.npy").stat().st_mtime_ns > written
    assert list(tmp_path.iterdir()) == [folder]


def test_a_moved_camera_does_not_meet_old_renders(tmp_path, monkeypatch):
    render_scenes(tmp_path, BLOCK, seed=1, cameras=["front"])
    moved = scene.CameraSpec(position=(0.1, 0.0, 0.5), target=(0.0, 0.5, 0.1), fovy=42.0)
    monkeypatch.setitem(scene.ADDED_CAMERAS, "front", moved)
    render_scenes(tmp_path, BLOCK, seed=1, cameras=["front"])
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(("count", "camera", "sentence"), [(0, "front", "at least one"), (1, "nowhere", "nowhere")])
def test_bad_requests_are_refused_before_anything_is_written(tmp_path, count, camera, sentence):
    with pytest.raises(ConfigError, match=sentence):
        render_scenes(tmp_path, count, seed=0, cameras=[camera])
    assert not list(tmp_path.iterdir())
