"""Protects normalisation statistics: the train split's, exact, and unmoved by anything in validation."""

import json

import h5py
import numpy as np
import pytest

from roboimi.errors import DataError
from roboimi.vla.data.statistics import RunningStatistics, compute_statistics


@pytest.fixture
def ref(tiny_dataset_maker):
    return tiny_dataset_maker(image_size=(2, 2), frames=[5, 9, 7])


def overwrite(path, name, change):
    with h5py.File(path, "r+", libver="latest") as file:
        file[name][...] = change(file[name][()])


def test_equal_to_numpy_over_the_train_rows(ref):
    statistics = compute_statistics(ref)
    for key, name in (
        ("state", "observations/qpos"),
        ("action", "action"),
        ("environment_state", "observations/environment_state"),
    ):
        rows = []
        for entry in ref.manifest.entries("train"):
            with h5py.File(ref.path(entry)) as file:
                rows.append(file[name][()].astype(np.float64))
        rows = np.concatenate(rows)
        expected = {"min": rows.min(0), "max": rows.max(0), "mean": rows.mean(0), "std": rows.std(0)}
        assert statistics[key].keys() == expected.keys()
        for figure, value in expected.items():
            np.testing.assert_allclose(statistics[key][figure], value, rtol=1e-12, atol=1e-12)


def test_a_poisoned_validation_episode_changes_nothing(ref):
    before = compute_statistics(ref)
    for entry in ref.manifest.entries("validation"):
        for name in ("action", "observations/qpos", "observations/environment_state"):
            overwrite(ref.path(entry), name, lambda rows: rows + 1e6)
    assert compute_statistics(ref) == before


def test_a_training_episode_does_change_them(ref):
    before = compute_statistics(ref)
    overwrite(ref.path(ref.manifest.entries("train")[0]), "action", lambda rows: rows + 1)
    assert compute_statistics(ref)["action"] != before["action"]
    assert compute_statistics(ref)["state"] == before["state"]


def test_json_carries_them_exactly(ref):
    statistics = compute_statistics(ref)
    assert json.loads(json.dumps(statistics)) == statistics


def test_non_finite_values_are_refused(ref):
    overwrite(ref.path(ref.manifest.entries("train")[0]), "action", lambda rows: rows * np.nan)
    with pytest.raises(DataError, match="not finite"):
        compute_statistics(ref)


def test_blocks_of_any_size_give_the_same_even_far_from_zero():
    rows = 1e6 + np.random.default_rng(0).normal(size=(1000, 2)) * 1e-3
    running = RunningStatistics(2)
    for block in np.split(rows, [1, 2, 500, 500, 993]):
        running.add(block)
    np.testing.assert_allclose(running.to_dict()["std"], rows.std(0), rtol=1e-5)
    np.testing.assert_allclose(running.to_dict()["mean"], rows.mean(0), rtol=1e-12)
