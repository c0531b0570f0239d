"""Supervised training of the stand-in tower: the cube's position, read linearly from what the tower gives.

The tower is judged by straight-line readers of its frozen `pooler_output`, so it is trained with them: one linear head
per view (where that view sees the cube) and one over the views' concatenation, as a policy's projections see it. Two
losses on the patch tokens find the cube long before the pooled ones alone would: which patches hold the cube, and
what position those patches say. All heads are thrown away at the end.
"""

import math
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import SiglipVisionModel

from roboimi.errors import ConfigError, NonFiniteError
from roboimi.progress import Progress
from roboimi.vla.standin.scenes import VISIBLE_PIXELS, Scenes, cube_mask
from roboimi.vla.standin.tower import initial_tower

# Positions are learned around the middle of the spawn range, in units of 10 cm.
CENTRE, UNIT = (0.1, 0.5, 0.03), 0.1


@dataclass(frozen=True)
class TrainSettings:
    """How a tower is trained.

    Attributes:
        steps: optimiser steps.
        batch_scenes: scenes per step; each gives V images.
        learning_rate: peak of the warm-up and cosine schedule.
        warmup_share: of the steps.
        weight_decay: of matrices; positions, probe, biases and norms have none.
        brightness: standard deviation of the factor on a batch's pixels, as another machine's GL may shade differently.
        huber_delta: where the position loss turns from squared to absolute, in units of 10 cm.
        patch_weight: of the loss on which patches hold the cube.
        token_weight: of the loss on the positions that those patches say.
        seed: of weights, order and augmentation.
    """

    steps: int = 1000
    batch_scenes: int = 24
    learning_rate: float = 1.5e-3
    warmup_share: float = 0.06
    weight_decay: float = 0.02
    brightness: float = 0.1
    huber_delta: float = 0.1
    patch_weight: float = 0.3
    token_weight: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_scenes < 1 or self.learning_rate <= 0:
            raise ConfigError(
                f"A tower cannot be trained with {asdict(self)}: steps, batch and learning rate are positive."
            )


class CubeHeads(nn.Module):
    """Linear readers of the tower's output, and their loss.

    Args:
        width: D.
        views: V.
    """

    def __init__(self, width: int, views: int):
        super().__init__()
        self.view = nn.ModuleList(nn.Linear(width, 3) for _ in range(views))
        self.fused = nn.Linear(views * width, 3)
        self.token = nn.ModuleList(nn.Linear(width, 3) for _ in range(views))
        self.patch = nn.Linear(width, 1)
        for layer in (*self.view, self.fused):
            nn.init.zeros_(layer.weight)

    def forward(self, pooled: Tensor, tokens: Tensor, cube: Tensor, share: Tensor, settings: TrainSettings) -> Tensor:
        """The loss of one batch.

        Args:
            pooled: (B, V, D) features.
            tokens: (B, V, P, D) last hidden states of the P patches.
            cube: (B, 3) positions around `CENTRE` in units of `UNIT`.
            share: (B, V, P) share of the view's cube pixels in each patch; all zero where it does not see the cube.
            settings: the losses' weights.
        """
        seen = share.sum(-1).clamp(max=1).round()  # (B, V)

        def distance(predicted: Tensor, target: Tensor) -> Tensor:
            return functional.smooth_l1_loss(
                predicted, target.expand_as(predicted), beta=settings.huber_delta, reduction="none"
            ).mean(-1)

        views = torch.stack([head(pooled[:, v]) for v, head in enumerate(self.view)], dim=1)  # (B, V, 3)
        loss = _mean_where(distance(views, cube[:, None]), seen)
        loss = loss + _mean_where(distance(self.fused(pooled.flatten(1)), cube), seen.amax(dim=1))
        said = torch.stack([head(tokens[:, v]) for v, head in enumerate(self.token)], dim=1)  # (B, V, P, 3)
        said = (distance(said, cube[:, None, None]) * share).sum(-1)
        loss = loss + settings.token_weight * _mean_where(said, seen)
        found = -(self.patch(tokens).squeeze(-1).log_softmax(-1) * share).sum(-1)
        return loss + settings.patch_weight * _mean_where(found, seen)


def train_tower(scenes: Scenes, settings: TrainSettings) -> tuple[SiglipVisionModel, list[float]]:
    """Train a tower on rendered scenes.

    Args:
        scenes: N scenes of V views.
        settings: see `TrainSettings`.

    Returns:
        The tower, in eval mode, and the loss of every step.

    Raises:
        NonFiniteError: the loss is not finite.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = initial_tower(settings.seed).train()
        heads = CubeHeads(model.config.hidden_size, len(scenes.cameras))
    parameters = [*model.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(_decay_groups(model, heads, settings.weight_decay), betas=(0.9, 0.98))
    rng = np.random.default_rng(settings.seed)
    order = _scene_order(len(scenes), settings.batch_scenes, rng)
    losses = []
    with Progress.start("train the stand-in", settings.steps) as progress:
        for step in range(settings.steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, settings)
            loss = _batch_loss(model, heads, scenes, next(order), settings, rng)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                raise NonFiniteError(f"The stand-in's loss is {losses[-1]} at step {step}: lower the learning rate.")
            progress.update(step + 1, f"loss {np.mean(losses[-50:]):.3f}")
    return model.eval(), losses


def learning_rate(step: int, settings: TrainSettings) -> float:
    """Linear warm-up, then a cosine down to one hundredth of the peak."""
    warmup = max(1, round(settings.warmup_share * settings.steps))
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    done = (step - warmup) / max(1, settings.steps - warmup)
    return settings.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))


def patch_shares(images: np.ndarray, patch: int) -> np.ndarray:
    """Which patches hold the cube, and how much of it.

    Args:
        images: (..., H, W, 3) uint8.
        patch: side of a patch in pixels.

    Returns:
        (..., P) float32 shares of the cube's pixels, row-major over the patches; they sum to 1, or are all 0 where
        fewer than `VISIBLE_PIXELS` show the cube.
    """
    *lead, height, width, _ = images.shape
    mask = cube_mask(images).reshape(*lead, height // patch, patch, width // patch, patch)
    counts = mask.sum(axis=(-3, -1)).reshape(*lead, -1)
    total = counts.sum(-1, keepdims=True)
    return np.where(total >= VISIBLE_PIXELS, counts / np.maximum(total, 1), 0.0).astype(np.float32)


def _batch_loss(
    model: SiglipVisionModel,
    heads: CubeHeads,
    scenes: Scenes,
    rows: np.ndarray,
    settings: TrainSettings,
    rng: np.random.Generator,
) -> Tensor:
    images = np.array(scenes.images[rows])  # (B, V, H, W, 3), a copy of the memory map
    batch, views = images.shape[:2]
    pixels = torch.from_numpy(images).flatten(0, 1).permute(0, 3, 1, 2).float().div(127.5).sub(1)
    pixels *= 1 + settings.brightness * float(rng.standard_normal())
    cube = (torch.from_numpy(scenes.cube[rows]) - torch.tensor(CENTRE)) / UNIT
    share = torch.from_numpy(patch_shares(images, model.config.patch_size))
    output = model(pixel_values=pixels)
    pooled = output.pooler_output.unflatten(0, (batch, views))
    tokens = output.last_hidden_state.unflatten(0, (batch, views))
    return heads(pooled, tokens, cube, share, settings)


def _scene_order(count: int, batch: int, rng: np.random.Generator):
    """Batches of scene indices without end: every scene once, in a new order each time."""
    waiting = np.empty(0, dtype=np.int64)
    while True:
        while len(waiting) < batch:
            waiting = np.concatenate([waiting, rng.permutation(count)])
        rows, waiting = waiting[:batch], waiting[batch:]
        yield np.sort(rows)  # in the order of the file


def _decay_groups(model: SiglipVisionModel, heads: CubeHeads, weight_decay: float) -> list[dict]:
    decayed, plain = [], [*heads.parameters()]
    for name, parameter in model.named_parameters():
        shrinks = parameter.ndim > 1 and "position_embedding" not in name and "probe" not in name
        (decayed if shrinks else plain).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


def _mean_where(values: Tensor, weight: Tensor) -> Tensor:
    return (values * weight).sum() / weight.sum().clamp(min=1)
