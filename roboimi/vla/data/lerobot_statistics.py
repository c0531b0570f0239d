"""Statistics as LeRobot keeps them, per episode and merged: min, max, mean, std, count and five quantiles a feature.

Vectors have one value a dimension over all rows; cameras have (3, 1, 1) values a channel in [0, 1] over a sample of
frames and pixels. Merging is exact for all but the quantiles, which become the envelope (the least of the lower ones,
the greatest of the upper ones), as in LeRobot 0.6.1 (`datasets/compute_stats.py`).
"""

from collections.abc import Mapping, Sequence

import numpy as np

Statistics = dict[str, np.ndarray]
QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
PIXELS_A_SIDE = 128
FRAMES_A_SAMPLE = 32


def of_rows(rows: np.ndarray) -> Statistics:
    """Statistics of (T, n) rows."""
    rows = np.asarray(rows, dtype=np.float64)
    values = {"min": rows.min(0), "max": rows.max(0), "mean": rows.mean(0), "std": rows.std(0)}
    quantiles = np.quantile(rows, list(QUANTILES.values()), axis=0)
    return {**values, "count": np.array([len(rows)]), **dict(zip(QUANTILES, quantiles, strict=True))}


def of_images(sample: Sequence[np.ndarray]) -> Statistics:
    """Statistics of a sample of (h, w, 3) uint8 images; `count` is the number of images."""
    pixels = np.concatenate([image.reshape(-1, 3) for image in sample])
    statistics = {name: value.reshape(-1, 1, 1) / 255 for name, value in of_rows(pixels).items() if name != "count"}
    return {**statistics, "count": np.array([len(sample)])}


def sampled(frame: int, frames: int) -> bool:
    """Whether frame number `frame` of `frames` is in the sample: at most 32, evenly spread."""
    step = -(-frames // FRAMES_A_SAMPLE)
    return frame % step == 0


def reduced(image: np.ndarray) -> np.ndarray:
    """Every n-th pixel of an image, so that no side has more than 128."""
    step = max(1, -(-max(image.shape[:2]) // PIXELS_A_SIDE))
    return np.array(image[::step, ::step])


def merge(parts: Sequence[Statistics]) -> Statistics:
    """Statistics of all rows behind `parts`."""
    counts = np.array([part["count"][0] for part in parts], dtype=np.float64)
    weights = (counts / counts.sum()).reshape(-1, *(1,) * parts[0]["mean"].ndim)
    means, stds = (np.stack([part[name] for part in parts]) for name in ("mean", "std"))
    mean = (weights * means).sum(0)
    std = np.sqrt((weights * (stds**2 + (means - mean) ** 2)).sum(0))
    merged = {
        "min": np.min([part["min"] for part in parts], axis=0),
        "max": np.max([part["max"] for part in parts], axis=0),
        "mean": mean,
        "std": std,
        "count": np.array([int(counts.sum())]),
    }
    for name, share in QUANTILES.items():
        merged[name] = (np.min if share <= 0.5 else np.max)([part[name] for part in parts], axis=0)
    return merged


def plain(statistics: Mapping[str, Statistics]) -> dict[str, dict[str, list]]:
    """Lists instead of arrays, as `meta/stats.json` holds them."""
    return {key: {name: value.tolist() for name, value in values.items()} for key, values in statistics.items()}
