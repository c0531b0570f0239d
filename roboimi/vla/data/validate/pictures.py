"""What a camera showed: one pass over its images, a block at a time, so that memory does not grow with the episode."""

import dataclasses
from collections.abc import Callable

import h5py
import numpy as np

GRID = 16
"""Points a side of the coarse picture that is kept of a camera."""

FINE = 2 * GRID
"""Points a side at which single images are looked at."""

_BLOCK_BYTES = 8 * 2**20


@dataclasses.dataclass
class CameraFacts:
    """What one camera showed in T images.

    Attributes:
        mean: (T,) mean grey of each image, 0 to 255; NaN where it cannot be read.
        spread: (T,) standard deviation over points and colours.
        change: (T,) mean absolute difference from the image before, on the fine grid; 0 for the first.
        same: (T,) whether every pixel is that of the image before.
        unreadable: rows whose bytes are damaged.
        picture: (GRID, GRID, 3) mean over time, float32 RGB 0 to 255.
        motion: (GRID, GRID) mean absolute change of each point, float32.
    """

    mean: np.ndarray
    spread: np.ndarray
    change: np.ndarray
    same: np.ndarray
    unreadable: list[int]
    picture: np.ndarray
    motion: np.ndarray


def watch(images: h5py.Dataset, beat: Callable[[], None] = lambda: None) -> CameraFacts:
    """Look at every image of a (T, H, W, 3) uint8 dataset once.

    Args:
        images: the dataset.
        beat: called after every block.
    """
    frames, *shape = images.shape
    watcher = Watcher(frames, tuple(shape))
    rows = _block_rows(images)
    buffer = np.empty((min(rows, frames), *shape), dtype=np.uint8)
    for start in range(0, frames, rows):
        stop = min(start + rows, frames)
        block = buffer[: stop - start]
        if _read(images, start, stop, block):
            watcher.add(start, block)
        else:
            for frame in range(start, stop):
                single = buffer[:1]
                if _read(images, frame, frame + 1, single):
                    watcher.add(frame, single)
                else:
                    watcher.miss(frame)
        beat()
    return watcher.facts()


class Watcher:
    """Takes in blocks of images in order, and keeps a few numbers of each."""

    def __init__(self, frames: int, shape: tuple[int, ...]):
        height, width = shape[:2]
        self._rows = np.linspace(0, height - 1, FINE).round().astype(int)
        self._columns = np.linspace(0, width - 1, FINE).round().astype(int)
        self._mean = np.full(frames, np.nan)
        self._spread = np.full(frames, np.nan)
        self._change = np.zeros(frames)
        self._same = np.zeros(frames, dtype=bool)
        self._unreadable: list[int] = []
        self._sum = np.zeros((FINE, FINE, 3))
        self._motion = np.zeros((FINE, FINE))
        self._seen = 0
        self._last: np.ndarray | None = None
        self._last_grid: np.ndarray | None = None

    def add(self, start: int, block: np.ndarray) -> None:
        """Take in images (n, H, W, 3) uint8 that follow those before."""
        stop = start + len(block)
        grid = block[:, self._rows[:, None], self._columns[None, :]].astype(np.float32)
        flat = grid.reshape(len(grid), -1)
        self._mean[start:stop] = flat.mean(axis=1)
        self._spread[start:stop] = flat.std(axis=1)
        self._sum += grid.sum(axis=0)
        self._seen += len(grid)
        before = np.concatenate([grid[:1] if self._last_grid is None else self._last_grid[None], grid[:-1]])
        difference = np.abs(grid - before)
        self._motion += difference.sum(axis=(0, 3))
        change = difference.mean(axis=(1, 2, 3))
        self._change[start:stop] = change
        for index in np.flatnonzero(change == 0):
            previous = block[index - 1] if index else self._last
            self._same[start + index] = previous is not None and np.array_equal(block[index], previous)
        self._last, self._last_grid = block[-1].copy(), grid[-1]

    def miss(self, frame: int) -> None:
        """Note that an image cannot be read; the next one has none before it."""
        self._unreadable.append(frame)
        self._last = self._last_grid = None

    def facts(self) -> CameraFacts:
        """What was seen."""
        seen = max(self._seen, 1)
        coarse = (GRID, FINE // GRID, GRID, FINE // GRID)
        return CameraFacts(
            mean=self._mean,
            spread=self._spread,
            change=self._change,
            same=self._same,
            unreadable=self._unreadable,
            picture=(self._sum / seen).reshape(*coarse, 3).mean(axis=(1, 3)).astype(np.float32),
            motion=(self._motion / seen).reshape(coarse).mean(axis=(1, 3)).astype(np.float32),
        )


def _block_rows(images: h5py.Dataset) -> int:
    """Images read at a time: whole chunks, about 8 MB."""
    image = max(1, int(np.prod(images.shape[1:], dtype=np.int64)))
    chunk = images.chunks[0] if images.chunks else 1
    return max(1, _BLOCK_BYTES // (image * chunk)) * chunk


def _read(images: h5py.Dataset, start: int, stop: int, out: np.ndarray) -> bool:
    try:
        images.read_direct(out, np.s_[start:stop], np.s_[0 : stop - start])
    except (OSError, RuntimeError):
        return False
    return True
