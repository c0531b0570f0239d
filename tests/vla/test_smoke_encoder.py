"""Protects the smoke test of the encoder: each thing that it promises to find is planted here once."""

import numpy as np
import pytest
import torch

from roboimi.errors import EncoderError
from roboimi.storage.store import open_store
from roboimi.vla import smoke_encoder
from roboimi.vla.config import TrainRun
from roboimi.vla.data.episode import write_episode
from roboimi.vla.data.manifest import resolve_dataset, split_episodes, write_manifest
from roboimi.vla.models.backbones import SigLIP2DiffusionBackbone
from roboimi.vla.models.encoder import load_vision_model
from roboimi.vla.models.encoder_spec import EncoderSpec
from roboimi.vla.models.staged_weights import STORE_VARIABLE, stage_weights
from roboimi.vla.smoke_encoder import check_parity, check_rollout_path, smoke_test_encoder
from tests.conftest import make_tiny_dataset, tiny_episode


@pytest.fixture(scope="module")
def task():
    return TrainRun.from_overrides([], dataset="none", encoder="standin").task


@pytest.fixture(scope="module")
def blind_dataset(tmp_path_factory, task):
    """Pictures that have nothing to do with where the cube is."""
    root = tmp_path_factory.mktemp("blind")
    return make_tiny_dataset(root / "data", episodes=14, frames=6, cameras=task.cameras, validation_fraction=0.1)


@pytest.fixture(scope="module")
def telling_dataset(tmp_path_factory, blind_dataset):
    """Pictures whose colours are the cube's position: what a tower that sees would make of the real ones."""
    root, contract = tmp_path_factory.mktemp("telling"), blind_dataset.contract
    files = [f"episode_{index:06d}.hdf5" for index in range(14)]
    for index, file in enumerate(files):
        arrays = tiny_episode(contract, 6, index)
        position = arrays["observations/environment_state"][:, :3]
        colour = np.clip(127 + 300 * position, 0, 255).astype(np.uint8)  # (T, 3)
        for camera in contract.cameras:
            arrays[f"observations/images/{camera}"][:] = colour[:, None, None, :]
        write_episode(root / file, arrays, contract, {"sim": True, "success": True, "seed": index, "task": "tiny"})
    write_manifest(root, contract=contract, source={"kind": "tiny"}, split=split_episodes(files, 0.1))
    return resolve_dataset(root)


@pytest.fixture
def backbone(tiny_tower):
    return SigLIP2DiffusionBackbone(num_views=3, vision_model=load_vision_model(str(tiny_tower))).eval()


@pytest.fixture
def images(blind_dataset):
    return smoke_encoder._frames(blind_dataset, 4, (256, 256))[0]


def test_a_tower_that_works_and_sees(telling_dataset, tiny_tower, task, tmp_path):
    store = open_store(tmp_path / "store")
    first = smoke_test_encoder(store, telling_dataset, str(tiny_tower), task)
    assert not first.recognised
    found = first.document
    assert found["feature_dim"] == 32
    assert found["staged_weights"] is None
    assert min(found["frame_size"]) > 256
    assert found["encoder_size"] == [256, 256]
    assert found["renderer"]
    assert 0 <= found["parity"] < smoke_encoder.PARITY_TOLERANCE
    assert found["warnings"] == []
    assert min(found["probe"]["r2"]) > 0.8
    assert all(near < far for near, far in zip(found["probe"]["median_cm"], found["probe"]["chance_cm"], strict=True))
    second = smoke_test_encoder(store, telling_dataset, str(tiny_tower), task)
    assert second.recognised
    assert second.document == found


def test_the_result_names_the_staged_weights_that_it_is_of(blind_dataset, tiny_tower, task, tmp_path, monkeypatch):
    store, name = open_store(tmp_path / "store"), f"google/tiny@{'0' * 40}"
    monkeypatch.setenv(STORE_VARIABLE, store.uri)
    manifest = stage_weights(store, EncoderSpec.parse(name), tiny_tower)
    assert smoke_test_encoder(store, blind_dataset, name, task).document["staged_weights"] == manifest.digest


def test_a_blind_tower_is_a_warning(blind_dataset, tiny_tower, task, tmp_path):
    test = smoke_test_encoder(open_store(tmp_path / "store"), blind_dataset, str(tiny_tower), task)
    (warning,) = test.document["warnings"]
    assert warning.startswith("The encoder is nearly blind")
    assert "nearly blind" in test.sentence


def test_a_dataset_without_an_environment_state_is_not_probed(tmp_path, tiny_tower, task):
    ref = make_tiny_dataset(tmp_path / "data", frames=4, cameras=task.cameras, environment_state_dim=0)
    test = smoke_test_encoder(open_store(tmp_path / "store"), ref, str(tiny_tower), task)
    assert test.document["probe"] is None
    assert "was not measured" in test.document["warnings"][0]
    assert "not probed" in test.sentence


def test_another_encoder_or_dataset_is_another_test(blind_dataset, telling_dataset, task):
    prefixes = {
        smoke_encoder.smoke_prefix(dataset.digest, encoder, task)
        for dataset in (blind_dataset, telling_dataset)
        for encoder in ("1" * 64, "2" * 64)
    }
    assert len(prefixes) == 4


def test_parity_of_the_two_paths(backbone, images):
    assert check_parity(backbone, images) < smoke_encoder.PARITY_TOLERANCE


def test_a_tower_that_depends_on_its_batch_is_found(backbone, images, monkeypatch):
    encode = backbone.encode_images

    def with_batch_statistics(images):
        features = encode(images)
        return features * (1 + 0.05 * len(images))

    monkeypatch.setattr(backbone, "encode_images", with_batch_statistics)
    with pytest.raises(EncoderError, match="other features than it sees in rollouts"):
        check_parity(backbone, images)


def test_features_that_are_not_finite(blind_dataset, tiny_tower, task, tmp_path, monkeypatch):
    def broken(spec):
        model = load_vision_model(spec)
        with torch.no_grad():
            next(model.parameters()).fill_(float("nan"))
        return model

    monkeypatch.setattr("roboimi.vla.models.encoder.load_vision_model", broken)
    store = open_store(tmp_path / "store")
    with pytest.raises(EncoderError, match="not finite"):
        smoke_test_encoder(store, blind_dataset, str(tiny_tower), task)
    assert store.list("smoke") == []


def test_frames_that_are_not_resized_are_found(backbone, task, monkeypatch):
    monkeypatch.setattr("roboimi.vla.rollouts.episode.resize_frame", lambda frame, size: frame)
    with pytest.raises(EncoderError, match=r"reach the encoder as \(\d+, \d+\), not \(256, 256\)"):
        check_rollout_path(backbone, task)


def test_an_environment_that_breaks_is_found(backbone, task, monkeypatch):
    def broken(frame, size):
        raise ValueError("no such size")

    monkeypatch.setattr("roboimi.vla.rollouts.episode.resize_frame", broken)
    with pytest.raises(EncoderError, match="gives no frame to encode: ValueError: no such size"):
        check_rollout_path(backbone, task)
