"""The order in which windows are trained on: a pure function of the seed and the step.

Epoch e visits every window once, in the order of a permutation that depends on (seed, e) alone. Batches run over the
ends of epochs, so each holds exactly `batch_size` windows and none is left out. A resumed training asks for the batch
of its step: there is no state to save.
"""

import numpy as np

from roboimi.errors import ConfigError


def epoch_order(num_windows: int, seed: int, epoch: int) -> np.ndarray:
    """Permutation of [0, num_windows) for one epoch, (num_windows,) int64.

    NumPy promises the stream of a bit generator for all its versions, that of `Generator.permutation` for none; so the
    order is that of raw 64-bit draws.
    """
    draws = np.random.PCG64(np.random.SeedSequence([seed, epoch])).random_raw(num_windows)
    return np.argsort(draws, kind="stable")


class WindowSampler:
    """Which windows make up the batch of a step.

    Args:
        num_windows: how many there are.
        batch_size: B.
        seed: not negative.

    Raises:
        ConfigError: a number that cannot be.
    """

    def __init__(self, num_windows: int, batch_size: int, seed: int):
        if num_windows < 1 or batch_size < 1 or seed < 0:
            raise ConfigError(
                f"Sampling {num_windows} windows in batches of {batch_size} with seed {seed} is impossible: give "
                "at least one window, a batch size of at least 1 and a seed of at least 0."
            )
        self.num_windows, self.batch_size, self.seed = num_windows, batch_size, seed
        self._orders: dict[int, np.ndarray] = {}

    def batch_indices(self, step: int) -> np.ndarray:
        """The windows of batch `step` (from 0), (B,) int64."""
        positions = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs, places = np.divmod(positions, self.num_windows)
        indices = np.empty(self.batch_size, dtype=np.int64)
        needed = range(int(epochs[0]), int(epochs[-1]) + 1)
        # Only a memo: what it holds never changes what comes out.
        self._orders = {epoch: self._order(epoch) for epoch in needed}
        for epoch in needed:
            within = epochs == epoch
            indices[within] = self._orders[epoch][places[within]]
        return indices

    def epoch(self, step: int) -> float:
        """Passes over the data before batch `step`."""
        return step * self.batch_size / self.num_windows

    def _order(self, epoch: int) -> np.ndarray:
        return self._orders[epoch] if epoch in self._orders else epoch_order(self.num_windows, self.seed, epoch)
