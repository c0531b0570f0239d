"""Protects the feature cache: what is not exactly what was committed for this dataset and encoder is refused."""

import json
import pickle

import numpy as np
import pytest

from roboimi.errors import DataError
from roboimi.storage.store import open_store
from roboimi.vla.data.feature_cache import (
    COMMIT_NAME,
    SCHEMA,
    cache_prefix,
    committed_cache,
    open_feature_cache,
    store_episode,
    stored_episode,
)
from roboimi.vla.data.manifest import EpisodeEntry

DATASET, ENCODER = "d" * 64, "e" * 64
ENTRY = EpisodeEntry("episode_000000.hdf5", "0" * 64, 1, 5)


@pytest.fixture
def store(tmp_path):
    return open_store(tmp_path / "store")


@pytest.fixture
def features():
    return np.random.default_rng(0).normal(size=(5, 2, 8)).astype(np.float32)


@pytest.fixture
def folder(store, features):
    """A committed cache of one episode."""
    prefix = cache_prefix(DATASET, ENCODER)
    folder = store.folder(prefix)
    stored = store_episode(folder, ENTRY, features)
    document = {
        "schema": SCHEMA,
        "dataset_digest": DATASET,
        "encoder": {"digest": ENCODER},
        "feature_dim": 8,
        "episodes": [stored.to_dict()],
    }
    store.publish(prefix, COMMIT_NAME, document)
    return folder


def flip_a_bit(path, offset=-1):
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def test_features_come_back_as_half_precision_memory_maps(store, folder, features):
    cache = open_feature_cache(store, DATASET, ENCODER)
    found = cache.episode(ENTRY.file)
    assert isinstance(found, np.memmap)
    np.testing.assert_array_equal(found, features.astype(np.float16))
    assert cache.feature_dim == 8


def test_pickling_does_not_carry_the_features(store, folder):
    cache = open_feature_cache(store, DATASET, ENCODER)
    empty = len(pickle.dumps(cache))
    expected = np.array(cache.episode(ENTRY.file))
    text = pickle.dumps(cache)
    assert len(text) == empty
    np.testing.assert_array_equal(pickle.loads(text).episode(ENTRY.file), expected)


@pytest.mark.parametrize(("dataset", "encoder"), [("f" * 64, ENCODER), (DATASET, "f" * 64)])
def test_another_dataset_or_encoder_has_no_cache_here(store, folder, dataset, encoder):
    assert committed_cache(store, dataset, encoder) is None
    with pytest.raises(DataError, match="encode them first"):
        open_feature_cache(store, dataset, encoder)


@pytest.mark.parametrize("field", ["dataset", "encoder"])
def test_a_cache_in_the_wrong_place_is_refused(store, folder, field):
    document = json.loads((folder / COMMIT_NAME).read_text())
    if field == "dataset":
        document["dataset_digest"] = "f" * 64
    else:
        document["encoder"]["digest"] = "f" * 64
    (folder / COMMIT_NAME).write_text(json.dumps(document))
    with pytest.raises(DataError, match=f"made with the {field} ffffffffffff"):
        open_feature_cache(store, DATASET, ENCODER)


def test_a_folder_without_commit_is_no_cache(store, folder):
    (folder / COMMIT_NAME).unlink()
    assert committed_cache(store, DATASET, ENCODER) is None


def test_a_flipped_bit_is_found_on_opening(store, folder):
    flip_a_bit(folder / "episode_000000.npy")
    with pytest.raises(DataError, match="damaged"):
        open_feature_cache(store, DATASET, ENCODER)


def test_a_missing_or_shorter_file_is_found_on_opening(store, folder):
    path = folder / "episode_000000.npy"
    content = path.read_bytes()
    path.write_bytes(content[:-16])
    with pytest.raises(DataError, match="cannot be read"):
        open_feature_cache(store, DATASET, ENCODER)
    path.unlink()
    with pytest.raises(DataError, match="cannot be read"):
        open_feature_cache(store, DATASET, ENCODER)


def test_stored_episodes_are_trusted_only_whole(folder, features):
    assert stored_episode(folder, ENTRY).shape == (5, 2, 8)
    note, array = folder / "episode_000000.json", folder / "episode_000000.npy"
    good = (note.read_bytes(), array.read_bytes())

    def restored():
        note.write_bytes(good[0])
        array.write_bytes(good[1])
        return stored_episode(folder, ENTRY)

    flip_a_bit(array)
    assert stored_episode(folder, ENTRY) is None
    assert restored()
    note.unlink()
    assert stored_episode(folder, ENTRY) is None
    assert restored()
    np.save(array, features)
    assert stored_episode(folder, ENTRY) is None
    assert restored()
    assert stored_episode(folder, EpisodeEntry(ENTRY.file, ENTRY.sha256, 1, 6)) is None
    note.write_text("[]")
    assert stored_episode(folder, ENTRY) is None


@pytest.mark.parametrize(("shape", "value"), [((4, 2, 8), 0.0), ((5, 16), 0.0), ((5, 2, 8), 1e6), ((5, 2, 8), np.nan)])
def test_features_that_cannot_be_stored_are_refused(tmp_path, shape, value):
    with pytest.raises(DataError):
        store_episode(tmp_path, ENTRY, np.full(shape, value))
    assert list(tmp_path.iterdir()) == []
