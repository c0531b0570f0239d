"""Protects the way of images from disk into an item: native 256x256, bit by bit, untouched where nobody looks."""

import h5py
import numpy as np
import pytest

from roboimi.errors import DataError
from roboimi.vla.data.simple_robot_dataset import SimpleRobotDataset


def stored(ref, entry, camera):
    with h5py.File(ref.path(entry), locking=False) as file:
        return file[f"observations/images/{camera}"][()]


def test_images_stay_at_native_256_and_are_those_on_disk(tiny_dataset_maker):
    ref = tiny_dataset_maker(frames=3)
    dataset = SimpleRobotDataset(ref, None, obs_horizon=2, pred_horizon=4)
    number = 0
    for entry in ref.manifest.episodes:
        views = [stored(ref, entry, camera) for camera in ref.contract.cameras]
        for frame in range(entry.frames):
            images = dataset[number]["images"]
            assert images.shape == (2, 3, 256, 256, 3)
            assert images.dtype == np.uint8
            for view, pictures in enumerate(views):
                np.testing.assert_array_equal(images[:, view], pictures[[max(frame - 1, 0), frame]])
            number += 1


def test_the_default_is_no_resize_whatever_the_size_on_disk(tiny_dataset_maker):
    ref = tiny_dataset_maker(frames=2, image_size=(48, 64))
    assert SimpleRobotDataset(ref, obs_horizon=1, pred_horizon=1)[0]["images"].shape == (1, 3, 48, 64, 3)


def test_the_backbone_asks_for_no_resize_of_the_dataset(tiny_dataset_maker):
    from roboimi.vla.models.backbones import SigLIP2DiffusionBackbone

    backbone = SigLIP2DiffusionBackbone(feature_dim=8)
    assert backbone.dataset_image_resize_shape is None
    ref = tiny_dataset_maker(frames=2)
    options = {"obs_horizon": 1, "pred_horizon": 1, "image_resize_shape": backbone.dataset_image_resize_shape}
    entry = ref.manifest.entries("train")[0]
    image = SimpleRobotDataset(ref, **options)[0]["images"][0, 0]
    np.testing.assert_array_equal(image, stored(ref, entry, ref.contract.cameras[0])[0])


def test_a_resize_that_is_asked_for_is_the_one_of_rollouts(tiny_dataset_maker):
    from roboimi.envs.images import resize_frame

    ref = tiny_dataset_maker(frames=2, image_size=(48, 64))
    dataset = SimpleRobotDataset(ref, obs_horizon=2, pred_horizon=1, image_resize_shape=(16, 24))
    images = dataset[1]["images"]
    assert images.shape == (2, 3, 16, 24, 3)
    entry = ref.manifest.entries("train")[0]
    for view, camera in enumerate(ref.contract.cameras):
        for frame in range(2):
            expected = resize_frame(stored(ref, entry, camera)[frame], (16, 24))
            np.testing.assert_array_equal(images[frame, view], expected)


def test_views_follow_the_contract_and_not_the_alphabet(tiny_dataset_maker):
    ref = tiny_dataset_maker(frames=1, image_size=(4, 4), cameras=["zenith", "left", "above"])
    images = SimpleRobotDataset(ref, obs_horizon=1, pred_horizon=1)[0]["images"]
    entry = ref.manifest.entries("train")[0]
    for view, camera in enumerate(["zenith", "left", "above"]):
        np.testing.assert_array_equal(images[0, view], stored(ref, entry, camera)[0])


@pytest.mark.parametrize("camera", ["top", "left", "right"])
def test_without_images_no_image_data_is_touched(tiny_dataset_maker, camera):
    ref = tiny_dataset_maker(frames=3, image_size=(16, 16))
    for entry in ref.manifest.episodes:
        with h5py.File(ref.path(entry), "r+", libver="latest") as file:
            del file[f"observations/images/{camera}"]
    blind = SimpleRobotDataset(ref, None, obs_horizon=2, pred_horizon=4, vision="none")
    for number in range(len(blind)):
        assert "images" not in blind[number]
    with pytest.raises(DataError, match=f"no /observations/images/{camera}"):
        SimpleRobotDataset(ref, None, obs_horizon=2, pred_horizon=4)[0]


def test_an_episode_without_a_camera_is_one_sentence(tiny_dataset_maker):
    ref = tiny_dataset_maker(frames=3, image_size=(16, 16))
    entry = ref.manifest.entries("train")[0]
    with h5py.File(ref.path(entry), "r+", libver="latest") as file:
        del file["observations/images/left"]
    with pytest.raises(DataError, match="has no /observations/images/left") as caught:
        SimpleRobotDataset(ref, obs_horizon=1, pred_horizon=1)[0]
    assert "\n" not in str(caught.value)
