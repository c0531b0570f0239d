"""Protects the shipped stand-in tower: the weights are those of the card, load like any others, and *see* the cube on
scenes rendered here and now; a random tower of the same shape does not."""

import re

import numpy as np
import pytest
import torch
from transformers import SiglipVisionConfig, SiglipVisionModel

from roboimi.storage.keys import sha256_file
from roboimi.vla.models.encoder import load_vision_model, random_vision_model
from roboimi.vla.models.encoder_spec import STANDIN_DIR, EncoderSpec
from roboimi.vla.standin.probe import probe_tower
from roboimi.vla.standin.scenes import render_scenes

GOAL = 0.010  # m, median an axis
SCENES = 608  # three quarters fit the probe, one quarter measures it


@pytest.fixture(scope="module")
def unseen(tmp_path_factory):
    return render_scenes(tmp_path_factory.mktemp("unseen"), SCENES, seed=20_260_406)


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _errors(model, scenes) -> dict[str, np.ndarray]:
    return {row.name: np.array(row.result.median_error) for row in probe_tower(model, scenes)}


def test_weights_are_those_of_the_card():
    card = (STANDIN_DIR / "README.md").read_text()
    (digest,) = re.findall(r"`([0-9a-f]{64})`", card)
    assert sha256_file(STANDIN_DIR / "model.safetensors") == digest
    assert (STANDIN_DIR / "model.safetensors").stat().st_size <= 8e6
    assert "not SigLIP2" in card


def test_the_standin_loads_like_any_other_tower():
    spec = EncoderSpec.parse("standin")
    assert spec.folder == STANDIN_DIR
    assert "trained" in spec.description
    loaded, info = SiglipVisionModel.from_pretrained(STANDIN_DIR, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    model = load_vision_model("standin")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))
    assert model.config.image_size == 256
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_the_standin_sees_the_cube_and_a_random_tower_does_not(unseen):
    seeing = _errors(load_vision_model("standin"), unseen)
    for name, error in seeing.items():
        assert (error[:2] <= GOAL).all(), f"{name}: median error {1e3 * error} mm"

    config = SiglipVisionConfig.from_pretrained(STANDIN_DIR)
    blind = _errors(random_vision_model(config, seed=0), unseen)
    for name, error in seeing.items():
        assert (blind[name][:2] > 2 * error[:2]).all(), f"{name}: {1e3 * blind[name]} against {1e3 * error} mm"
    assert (blind["all views, cube on the table"][:2] > GOAL).all()
