"""How well a frozen tower's pooled feature says where the cube is, on scenes that took no part in its training."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import SiglipVisionModel

from roboimi.progress import Progress
from roboimi.vla.linear_probe import ProbeResult, linear_probe
from roboimi.vla.models.backbones.siglip2_diffusion_backbone import SigLIP2DiffusionBackbone
from roboimi.vla.standin.scenes import BLOCK, Scenes

_CHUNK = 16  # scenes encoded at once


@dataclass(frozen=True)
class ProbeRow:
    """One line of the probe's table: which features and scenes, and the result for x, y, z in m."""

    name: str
    result: ProbeResult

    def to_dict(self) -> dict:
        """Errors in mm."""
        return {
            "features": self.name,
            "median_mm": [round(1e3 * error, 2) for error in self.result.median_error],
            "chance_mm": [round(1e3 * error, 1) for error in self.result.chance_error],
            "r2": [round(r2, 4) for r2 in self.result.r2],
            "scenes": [self.result.train_rows, self.result.test_rows],
        }


def encode_scenes(model: SiglipVisionModel, scenes: Scenes) -> np.ndarray:
    """Pooled features (N, V, D) float32 of all scenes, on the policy's own path from pixels to features."""
    backbone = SigLIP2DiffusionBackbone(num_views=len(scenes.cameras), vision_model=model)
    features = []
    with Progress.start("encode scenes", len(scenes)) as progress:
        for start in range(0, len(scenes), _CHUNK):
            images = torch.from_numpy(np.array(scenes.images[start : start + _CHUNK]))
            features.append(backbone.encode_images(images).float().numpy())
            progress.update(min(start + _CHUNK, len(scenes)))
    return np.concatenate(features)


def probe_tower(model: SiglipVisionModel, scenes: Scenes, seed: int = 0) -> list[ProbeRow]:
    """Probe each view where it sees the cube, and all views together.

    Args:
        model: the frozen tower.
        scenes: at least 4 blocks; one quarter of the blocks is measured, the rest fits the probe.
        seed: of the split.

    Returns:
        One row a view, over scenes with the cube on the table, independent of the arms; then all views concatenated:
        over those scenes, over true frames of expert episodes, and over all.
    """
    features = encode_scenes(model, scenes)
    on_table = scenes.of_kind("home", "reaching")
    rows = []
    for view, camera in enumerate(scenes.cameras):
        rows.append(
            _row(f"{camera}, cube on the table", features[:, view], scenes, scenes.visible[:, view] & on_table, seed)
        )
    together = features.reshape(len(features), -1)
    rows.append(_row("all views, cube on the table", together, scenes, on_table, seed))
    rows.append(_row("all views, true episode frames", together, scenes, scenes.of_kind("true"), seed))
    rows.append(_row("all views, all scenes", together, scenes, np.ones(len(scenes), bool), seed))
    return rows


def format_table(rows: Sequence[ProbeRow]) -> str:
    """A Markdown table: median error an axis in mm, what always answering the mean would give, and R²."""
    lines = ["| features | median error x, y, z (mm) | chance (mm) | R² |", "|---|---|---|---|"]
    for row in rows:
        median, chance = (
            " / ".join(f"{1e3 * error:.1f}" for error in errors)
            for errors in (row.result.median_error, row.result.chance_error)
        )
        lines.append(f"| {row.name} | {median} | {chance} | {' / '.join(f'{r2:.3f}' for r2 in row.result.r2)} |")
    return "\n".join(lines)


def _row(name: str, features: np.ndarray, scenes: Scenes, chosen: np.ndarray, seed: int) -> ProbeRow:
    # A block's true frames come from one episode: split by block, never within one.
    groups = np.arange(len(scenes)) // BLOCK
    return ProbeRow(name, linear_probe(features[chosen], scenes.cube[chosen], groups[chosen], seed))
