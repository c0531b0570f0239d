"""Per-dimension statistics for normalisation, from the training episodes alone.

Statistics of other episodes than those trained on would let the validation split leak into the policy, and a policy
normalised with another dataset's statistics does not move.
"""

from collections.abc import Iterator

import numpy as np

from roboimi.errors import DataError
from roboimi.vla.data.episode import EpisodeFile
from roboimi.vla.data.manifest import DatasetRef
from roboimi.vla.data.simple_robot_dataset import LowDimArrays

Statistics = dict[str, dict[str, list[float]]]
"""`{"state": {"min": [S], "max": [S], "mean": [S], "std": [S]}, "action": ..., "environment_state": ...}`."""


class RunningStatistics:
    """Minimum, maximum, mean and standard deviation of rows that arrive in blocks.

    Blocks are merged with the parallel update of Chan, Golub and LeVeque (1979), in float64: one pass, and no loss of
    digits where a mean is large against its spread.
    """

    def __init__(self, width: int):
        self.count = 0
        self.minimum = np.full(width, np.inf)
        self.maximum = np.full(width, -np.inf)
        self.mean = np.zeros(width)
        self._squares = np.zeros(width)

    def add(self, rows: np.ndarray) -> None:
        """Take in `rows` (n, width)."""
        rows = np.asarray(rows, dtype=np.float64)
        if not len(rows):
            return
        total = self.count + len(rows)
        mean = rows.mean(axis=0)
        shift = mean - self.mean
        self._squares += ((rows - mean) ** 2).sum(axis=0) + shift**2 * (self.count * len(rows) / total)
        self.mean += shift * (len(rows) / total)
        self.minimum = np.minimum(self.minimum, rows.min(axis=0))
        self.maximum = np.maximum(self.maximum, rows.max(axis=0))
        self.count = total

    def to_dict(self) -> dict[str, list[float]]:
        """Lists of plain floats; the standard deviation is that of the population (divided by n)."""
        std = np.sqrt(self._squares / self.count)
        values = {"min": self.minimum, "max": self.maximum, "mean": self.mean, "std": std}
        return {name: value.tolist() for name, value in values.items()}


def compute_statistics(ref: DatasetRef) -> Statistics:
    """Statistics over all rows of the episodes in the train split; one episode in memory at a time.

    Raises:
        DataError: an episode cannot be read, or holds a value that is not finite.
    """
    running: dict[str, RunningStatistics] = {}
    for file, arrays in _train_arrays(ref):
        for name, rows in vars(arrays).items():
            if rows is None:
                continue
            if not np.isfinite(rows).all():
                raise DataError(f"Episode {file} has values in {name} that are not finite: validate the dataset.")
            running.setdefault(name, RunningStatistics(rows.shape[1])).add(rows)
    if not running:
        raise DataError(f"Dataset {ref.root} has no training episode: write the manifest again with at least one.")
    return {name: statistics.to_dict() for name, statistics in running.items()}


def _train_arrays(ref: DatasetRef) -> Iterator[tuple[str, LowDimArrays]]:
    for entry in ref.bring(ref.manifest.entries("train")).manifest.entries("train"):
        with EpisodeFile(ref.path(entry), ref.contract) as episode:
            yield entry.file, LowDimArrays(episode, entry)
