"""A linear probe: can a straight-line function of frozen features say where something is?

Ridge regression from features x (n, F) to targets y (n, K), solved in the dual, as F is often larger than n:

    w = X' (X X' + n a I)^-1 Y,    X and Y centred, X scaled to unit variance.

The strength a is chosen within the training groups, and the answer is measured on groups that took no part in anything:
frames of one episode are near-copies of each other, so a split by frame would measure memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from roboimi.errors import DataError

STRENGTHS = tuple(10.0**power for power in range(-4, 4))
HELD_OUT_FRACTION = 0.25
MIN_GROUPS = 4


@dataclass(frozen=True)
class ProbeResult:
    """How well a linear probe does on held-out groups.

    Attributes:
        r2: (K,) coefficient of determination per target; 0 is as good as the training mean, 1 is perfect.
        median_error: (K,) median absolute error, in the unit of the targets.
        chance_error: (K,) the same for always answering the training mean.
        strength: the ridge strength that was chosen.
        train_rows: rows that were fitted.
        test_rows: rows that were measured.
    """

    r2: tuple[float, ...]
    median_error: tuple[float, ...]
    chance_error: tuple[float, ...]
    strength: float
    train_rows: int
    test_rows: int


def linear_probe(features: np.ndarray, targets: np.ndarray, groups: np.ndarray, seed: int = 0) -> ProbeResult:
    """Fit on some groups, measure on others.

    Args:
        features: (n, F).
        targets: (n, K).
        groups: (n,) which episode a row is from.
        seed: of the draw of groups.

    Raises:
        DataError: fewer than 4 groups, or a value that is not finite.
    """
    features, targets = np.asarray(features, np.float64), np.asarray(targets, np.float64)
    names = np.unique(groups)
    if len(names) < MIN_GROUPS:
        raise DataError(f"A linear probe over {len(names)} episodes says nothing: give at least {MIN_GROUPS}.")
    if not (np.isfinite(features).all() and np.isfinite(targets).all()):
        raise DataError("A linear probe was given values that are not finite: check the encoder and the dataset.")
    drawn = np.random.default_rng(seed).permutation(names)
    held_out = max(1, round(HELD_OUT_FRACTION * len(names)))
    # The same number of groups again, of those that are left, chooses the strength.
    test, choose, fit = np.split(drawn, [held_out, 2 * held_out])
    strength = _choose_strength(features, targets, np.isin(groups, fit), np.isin(groups, choose))
    train, rows = ~np.isin(groups, test), np.isin(groups, test)
    predicted = _ridge(features[train], targets[train], features[rows], [strength])[0]
    residual, spread = targets[rows] - predicted, targets[rows] - targets[train].mean(0)
    # A target that does not vary (a cube that always lies on the table) has nothing to be explained.
    variation = (spread**2).sum(0)
    r2 = np.where(variation > 1e-12, 1 - (residual**2).sum(0) / np.maximum(variation, 1e-12), 0.0)
    return ProbeResult(
        r2=tuple(r2.tolist()),
        median_error=tuple(np.median(np.abs(residual), axis=0).tolist()),
        chance_error=tuple(np.median(np.abs(spread), axis=0).tolist()),
        strength=strength,
        train_rows=int(train.sum()),
        test_rows=int(rows.sum()),
    )


def _choose_strength(features: np.ndarray, targets: np.ndarray, fit: np.ndarray, choose: np.ndarray) -> float:
    scale = targets[fit].std(0) + 1e-12
    predictions = _ridge(features[fit], targets[fit], features[choose], STRENGTHS)
    errors = [float((((predicted - targets[choose]) / scale) ** 2).mean()) for predicted in predictions]
    return STRENGTHS[int(np.argmin(errors))]


def _ridge(x: np.ndarray, y: np.ndarray, at: np.ndarray, strengths: Sequence[float]) -> list[np.ndarray]:
    """Predictions (m, K) at the rows `at` (m, F), one array a strength."""
    mean, scale = x.mean(0), x.std(0)
    # A feature that is constant in the fitted rows must not blow up where it is not constant in the others.
    scale = np.where(scale > 1e-8, scale, np.inf)
    x, at, centre = (x - mean) / scale, (at - mean) / scale, y.mean(0)
    gram = x @ x.T
    level = np.trace(gram) / len(gram) or 1.0
    predictions = []
    for strength in strengths:
        factor = cho_factor(gram + strength * level * np.eye(len(gram)))
        predictions.append(at @ (x.T @ cho_solve(factor, y - centre)) + centre)
    return predictions
