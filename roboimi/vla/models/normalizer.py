"""Min-max normalisation to [-1, 1] with the statistics of the train split, kept as buffers next to the weights."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from roboimi.errors import DataError

SMALLEST_RANGE = 1e-4
"""A dimension that moves less (rad, m, ...) gets scale 1 around its mean instead of being blown up to [-1, 1]."""

INPUT_LIMIT = 10.0
"""Normalised observations are clamped to +-10 half-ranges: far outside the data, and finite whatever a robot reads."""


class MinMaxNormalizer(nn.Module):
    """(x - center) / scale per dimension, so that the train split lies in [-1, 1].

    Until `fit` or a checkpoint fills them the buffers are NaN: an unfitted normaliser gives NaN, never raw numbers that
    pass for normalised ones.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.register_buffer("center", torch.full((dim,), float("nan")))
        self.register_buffer("scale", torch.full((dim,), float("nan")))

    def fit(self, statistics: Mapping[str, Sequence[float]]) -> None:
        """Take `min`, `max` and `mean` (each of `dim` numbers).

        Raises:
            DataError: they have another length than `dim`, or are not finite.
        """
        low, high, mean = (torch.tensor(statistics[key], dtype=torch.float64) for key in ("min", "max", "mean"))
        if low.shape != self.center.shape:
            raise DataError(
                f"Statistics of {low.numel()} dimensions do not fit a policy of {self.center.numel()}: "
                "train on a dataset whose contract matches the configuration."
            )
        if not torch.isfinite(torch.stack((low, high, mean))).all():
            raise DataError("The dataset's statistics are not finite: validate the dataset and compute them again.")
        still = high - low < SMALLEST_RANGE
        self.center.copy_(torch.where(still, mean, (high + low) / 2))
        self.scale.copy_(torch.where(still, torch.ones_like(low), (high - low) / 2))

    def forward(self, raw: Tensor) -> Tensor:
        """(..., dim) in raw units -> normalised."""
        return (raw - self.center) / self.scale

    def inverse(self, normalised: Tensor) -> Tensor:
        """(..., dim) normalised -> raw units."""
        return normalised * self.scale + self.center
