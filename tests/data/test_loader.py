"""Protects the fast loader: its batches are the dataset's items, at a rate that no training outruns."""

import time

import numpy as np
import pytest
import torch

from roboimi.errors import DataError
from roboimi.vla.data.feature_cache import FeatureCache, store_episode
from roboimi.vla.data.loader import WindowLoader
from roboimi.vla.data.sampler import WindowSampler
from roboimi.vla.data.simple_robot_dataset import SimpleRobotDataset


def random_features(ref, folder, width=12):
    """A cache of random features for the episodes of a dataset."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    stored = [
        store_episode(folder, entry, rng.normal(size=(entry.frames, ref.contract.num_views, width)))
        for entry in ref.manifest.episodes
    ]
    return FeatureCache(folder, {"feature_dim": width, "episodes": [item.to_dict() for item in stored]})


def make_dataset(ref, vision, features, **options):
    features = features if vision == "features" else None
    return SimpleRobotDataset(ref, vision=vision, features=features, **options)


@pytest.mark.parametrize("vision", ["images", "features", "none"])
@pytest.mark.parametrize("environment_state_dim", [0, 7])
def test_batches_equal_stacked_items(tiny_dataset_maker, tmp_path, vision, environment_state_dim):
    ref = tiny_dataset_maker(image_size=(8, 8), frames=[6, 9, 7], environment_state_dim=environment_state_dim)
    features = random_features(ref, tmp_path / "features")
    dataset = make_dataset(ref, vision, features, split=None, obs_horizon=2, pred_horizon=5)
    windows = np.random.default_rng(0).permutation(len(dataset))
    windows = np.concatenate([windows, windows[:3]])
    batch = WindowLoader(dataset).batch(windows)
    items = [dataset[window] for window in windows]
    assert batch.keys() == items[0].keys()
    for name, tensor in batch.items():
        expected = torch.from_numpy(np.stack([item[name] for item in items]))
        assert tensor.dtype == expected.dtype
        assert torch.equal(tensor, expected)


def test_a_batch_may_be_written_to(tiny_dataset_maker, tmp_path):
    ref = tiny_dataset_maker(image_size=(8, 8), frames=6)
    dataset = make_dataset(ref, "features", random_features(ref, tmp_path / "features"), obs_horizon=2, pred_horizon=5)
    loader = WindowLoader(dataset)
    before = loader.batch(np.arange(4))
    for tensor in loader.batch(np.arange(4)).values():
        tensor.zero_()
    for name, tensor in loader.batch(np.arange(4)).items():
        assert torch.equal(tensor, before[name])


def test_no_file_stays_open_and_no_image_is_read_without_images(tiny_dataset_maker):
    ref = tiny_dataset_maker(image_size=(8, 8), frames=6)
    dataset = make_dataset(ref, "none", None, obs_horizon=2, pred_horizon=5)
    loader = WindowLoader(dataset)
    for entry in ref.manifest.episodes:
        ref.path(entry).unlink()
    assert len(loader.batch(np.arange(len(loader)))["state"]) == len(dataset)


def test_features_of_another_dataset_are_refused(tiny_dataset_maker, tmp_path):
    features = random_features(tiny_dataset_maker(image_size=(2, 2), frames=4, episodes=2), tmp_path / "features")
    other = tiny_dataset_maker(image_size=(2, 2), frames=4, episodes=4, validation_fraction=0.0)
    with pytest.raises(DataError, match="another dataset"):
        WindowLoader(make_dataset(other, "features", features, obs_horizon=2, pred_horizon=5))


@pytest.mark.parametrize("vision", ["features", "none"])
def test_rate(tiny_dataset_maker, tmp_path, vision):
    ref = tiny_dataset_maker(image_size=(2, 2), frames=200, episodes=10)
    features = random_features(ref, tmp_path / "features", width=768)
    loader = WindowLoader(make_dataset(ref, vision, features, obs_horizon=2, pred_horizon=16))
    sampler = WindowSampler(len(loader), batch_size=64, seed=0)
    for step in range(10):
        loader.batch(sampler.batch_indices(step))

    def windows_per_second():
        started = time.perf_counter()
        for step in range(100):
            loader.batch(sampler.batch_indices(step))
        return 6400 / (time.perf_counter() - started)

    # The best of several: other processes share the machine.
    assert max(windows_per_second() for _ in range(5)) > 20_000
