"""Policies and batches of the campaign's shapes with random content, for what depends on sizes and not on data."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from roboimi.vla.agent import VLAAgent
from roboimi.vla.build import build_agent
from roboimi.vla.config import TrainConfig, TrainRun, compose_config
from roboimi.vla.training.trainer import Trainer

BATCH, TO, T, V, S, A, E = 64, 2, 16, 3, 14, 14, 7
"""Batch size, observation steps, horizon, views, state, action and environment-state width of the campaign."""

BASE_TOWER = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
BASE_TOWER |= {"image_size": 256, "patch_size": 16}
"""Sizes of google/siglip2-base-patch16-256's vision tower: 93 M parameters."""

STATISTICS = {
    name: {"min": [-1.0] * width, "max": [1.0] * width, "mean": [0.0] * width, "std": [0.5] * width}
    for name, width in (("state", S), ("action", A), ("environment_state", E))
}


def base_tower(dtype: torch.dtype = torch.float32) -> Any:
    """A tower of SigLIP2's base size with random weights: its speed does not depend on them."""
    from transformers import SiglipVisionConfig

    from roboimi.vla.models.encoder import freeze, random_vision_model

    return freeze(random_vision_model(SiglipVisionConfig(**BASE_TOWER), seed=0)).to(dtype)


def agent(overrides: Sequence[str], *, tower: Any = None, feature_dim: int | None = 768) -> VLAAgent:
    """The campaign's policy with these overrides; with a tower it encodes images, else it reads features."""
    config = compose_config(overrides)
    width = None if tower is not None else feature_dim
    return build_agent(config, vision_model=tower, feature_dim=width, statistics=STATISTICS)


def batch(kind: str, size: int = BATCH, *, feature_dim: int = 768) -> dict[str, Tensor]:
    """A training batch that holds `images`, `features` or `environment_state` next to state and action."""
    generator = torch.Generator().manual_seed(0)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(size, *shape, generator=generator) * 2 - 1

    made = {"state": uniform(TO, S), "action": uniform(T, A), "action_is_pad": torch.zeros(size, T, dtype=torch.bool)}
    if kind == "images":
        made["images"] = torch.randint(0, 256, (size, TO, V, 256, 256, 3), dtype=torch.uint8, generator=generator)
    elif kind == "features":
        made["features"] = uniform(TO, V, feature_dim).half()
    else:
        made["environment_state"] = uniform(TO, E)
    return made


def trainer(policy: VLAAgent, content: dict[str, Tensor], **settings: Any) -> Trainer:
    """A trainer whose every step gets the same batch; `advance()` is one whole update, EMA included."""
    config = TrainRun.from_overrides(["backbone=blind"], dataset="", encoder="standin").train
    device = policy.device
    content = {name: tensor.to(device) for name, tensor in content.items()}
    values = {**vars(config), **settings}
    return Trainer(policy, lambda step: content, TrainConfig(**values))
