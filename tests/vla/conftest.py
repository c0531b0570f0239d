"""Helpers: a tiny real vision tower on disk."""

from pathlib import Path

import pytest
from transformers import SiglipVisionConfig

from roboimi.vla.models.encoder import random_vision_model

TINY_TOWER = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 256,
    "patch_size": 32,
}


@pytest.fixture(scope="session")
def tiny_tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a randomly initialised `SiglipVisionModel`, as `save_pretrained` writes it."""
    folder = tmp_path_factory.mktemp("tower")
    random_vision_model(SiglipVisionConfig(**TINY_TOWER), seed=1).save_pretrained(folder)
    return folder
