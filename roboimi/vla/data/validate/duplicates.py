"""Which episodes are the same one: equal numbers, or the same motion cut or stored a little differently."""

import collections
from collections.abc import Sequence

import numpy as np

from roboimi.vla.data.validate.summary import EpisodeSummary

_COMMON = 16
_FEWEST_SHARED = 8

_ROWS = 256
"""Episodes compared with all others at a time."""


def duplicate_groups(episodes: Sequence[EpisodeSummary], spread: float) -> list[list[int]]:
    """Groups of indices, each sorted, of episodes that are the same.

    Two are the same if their states and actions are equal, if they share most of their rows, or if their profiles
    differ by less than `spread` times the standard deviation that each joint has over the whole dataset (root mean
    square over joints and time).

    Args:
        episodes: n summaries.
        spread: share of the joints' spread.
    """
    parent = list(range(len(episodes)))

    def root(index: int) -> int:
        while parent[index] != index:
            index = parent[index]
        return index

    def join(first: int, second: int) -> None:
        low, high = sorted((root(first), root(second)))
        parent[high] = low

    seen: dict[str, int] = {}
    for index, episode in enumerate(episodes):
        join(seen.setdefault(episode.content, index), index)
    for first, second in [*_near(_profiles(episodes), spread), *_sharing_rows(episodes)]:
        join(first, second)
    groups: dict[int, list[int]] = {}
    for index in range(len(episodes)):
        groups.setdefault(root(index), []).append(index)
    return [group for group in groups.values() if len(group) > 1]


def _profiles(episodes: Sequence[EpisodeSummary]) -> np.ndarray:
    """(n, POINTS * S) in units of each joint's spread; joints that hardly move count little."""
    states = np.stack([episode.state for episode in episodes]).astype(np.float64)
    scale = np.maximum(states.std(axis=(0, 1)), 1e-3)
    return (states / scale).reshape(len(states), -1)


def _sharing_rows(episodes: Sequence[EpisodeSummary]) -> list[tuple[int, int]]:
    holders: dict[int, list[int]] = {}
    shared: collections.Counter[tuple[int, int]] = collections.Counter()
    for index, episode in enumerate(episodes):
        for value in episode.rows.tolist():
            others = holders.setdefault(value, [])
            # A state that many episodes have, such as the one they start in, says nothing.
            if len(others) < _COMMON:
                shared.update((other, index) for other in others)
            others.append(index)
    return [
        (first, second)
        for (first, second), count in shared.items()
        if count >= max(_FEWEST_SHARED, min(len(episodes[first].rows), len(episodes[second].rows)) // 2)
    ]


def _near(profiles: np.ndarray, spread: float) -> list[tuple[int, int]]:
    squares = (profiles**2).mean(axis=1)
    pairs = []
    for start in range(0, len(profiles), _ROWS):
        block = profiles[start : start + _ROWS]
        products = block @ profiles.T / profiles.shape[1]
        distance = squares[start : start + _ROWS, None] + squares - 2 * products
        for row, column in np.argwhere(distance < spread**2 + 1e-12):
            if start + row < column:
                pairs.append((int(start + row), int(column)))
    return pairs
