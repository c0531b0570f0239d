"""The stand-in's architecture and how its weights begin.

A `SiglipVisionModel` with its usual parts, small enough for one core: 64 patches of 32 x 32 pixels, 192 wide, two
layers, attention pooling. From the library's random initialisation, a patch embedding of noise filters, it learns
slowly where *within* a patch something is; so two tensors begin smooth instead:

- the patch embedding with the 64 lowest two-dimensional cosines (DCT-II) of brightness, redness and green minus blue,
  which is a band-limited copy of the patch;
- the position embedding with two-dimensional sines and cosines, from a half wave over the image to one of two patches.

Both are trained like everything else.
"""

import numpy as np
import torch
from transformers import SiglipVisionConfig, SiglipVisionModel

from roboimi.vla.models.encoder import random_vision_model

TOWER = {
    "hidden_size": 192,
    "intermediate_size": 384,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 256,
    "patch_size": 32,
}
"""Arguments of `transformers.SiglipVisionConfig`."""

# Orthonormal directions of RGB: brightness, redness, green minus blue.
_COLOURS = np.array([[1, 1, 1], [2, -1, -1], [0, 1, -1]]) / np.sqrt([[3], [6], [2]])


def initial_tower(seed: int) -> SiglipVisionModel:
    """The tower before training: random from `seed`, patch and position embedding as in the module's docstring."""
    model = random_vision_model(SiglipVisionConfig(**TOWER), seed)
    config, embeddings = model.config, model.embeddings
    grid = config.image_size // config.patch_size
    with torch.no_grad():
        filters = patch_filters(config.hidden_size, config.patch_size)
        embeddings.patch_embedding.weight.copy_(torch.from_numpy(filters))
        embeddings.patch_embedding.bias.zero_()
        embeddings.position_embedding.weight.copy_(torch.from_numpy(grid_waves(config.hidden_size, grid, seed)))
    return model


def patch_filters(width: int, patch: int) -> np.ndarray:
    """The first filters → (width, 3, patch, patch) float32: the width/3 lowest cosines of each colour, orthonormal."""
    per_colour = width // len(_COLOURS)
    side = int(np.ceil(np.sqrt(2 * per_colour)))
    waves = np.cos(np.pi * np.arange(side)[:, None] * (np.arange(patch) + 0.5) / patch)  # (side, patch)
    waves *= np.sqrt(2 / patch)
    waves[0] /= np.sqrt(2)
    lowest = sorted(((i, j) for i in range(side) for j in range(side)), key=lambda f: (f[0] ** 2 + f[1] ** 2, f))
    planes = np.stack([np.outer(waves[i], waves[j]) for i, j in lowest[:per_colour]])
    filters = np.einsum("cr,nhw->cnrhw", _COLOURS, planes)
    return filters.reshape(width, 3, patch, patch).astype(np.float32)


def grid_waves(width: int, grid: int, seed: int) -> np.ndarray:
    """The first position embedding → (grid * grid, width) float32, values in [-1, 1], row-major over the patches."""
    centres = 2 * (np.arange(grid) + 0.5) / grid - 1
    per_axis = width // 4
    frequencies = np.pi / 2 * (grid / 2) ** (np.arange(per_axis) / (per_axis - 1))
    angles = frequencies[:, None] * centres
    axis = np.concatenate([np.sin(angles), np.cos(angles)])  # (width / 2, grid)
    down = np.broadcast_to(axis[:, :, None], (len(axis), grid, grid))
    along = np.broadcast_to(axis[:, None, :], (len(axis), grid, grid))
    waves = np.concatenate([down, along]).reshape(width, grid * grid).T
    # Attention heads read contiguous slices: shuffled, each gets both axes and all frequencies.
    return np.ascontiguousarray(waves[:, np.random.default_rng(seed).permutation(width)], dtype=np.float32)
