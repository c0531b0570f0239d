"""Which rows of an episode make up a window. Pure functions of frame numbers.

With To = 2 observation steps, T = 6 predicted actions and Ta = 3 executed ones, the window at frame t is

    row             t-1   t   t+1  t+2  t+3  t+4
    observations     o    o                          To rows, the newest is t
    actions          a0   a1   a2   a3   a4   a5     T rows, index 0 beside the oldest observation
    executed              x    x    x                [To-1, To-1+Ta): from the present on

A window exists at every frame of every episode. Before the first frame, the first frame is repeated, its action
included: that is what the policy sees when an episode begins, so it counts in the loss. After the last frame, the last
action is repeated and marked as padding, which does not count.
"""

import numpy as np

from roboimi.errors import ConfigError


def observation_rows(frames: np.ndarray, obs_horizon: int) -> np.ndarray:
    """Rows of the To observations of windows at `frames` (n,): (n, To) int64, oldest first."""
    steps = np.arange(1 - obs_horizon, 1)
    return np.maximum(np.asarray(frames, dtype=np.int64)[:, None] + steps, 0)


def action_rows(
    frames: np.ndarray, episode_frames: np.ndarray, obs_horizon: int, pred_horizon: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the T actions of windows, and which of them lie past the episode's end.

    Args:
        frames: (n,) frame t of each window.
        episode_frames: (n,) number of rows of the episode that each window is in.
        obs_horizon: To.
        pred_horizon: T.

    Returns:
        (n, T) int64 rows within the episode, and (n, T) bool `is_pad`.
    """
    last = np.asarray(episode_frames, dtype=np.int64)[:, None] - 1
    rows = np.asarray(frames, dtype=np.int64)[:, None] + np.arange(1 - obs_horizon, 1 - obs_horizon + pred_horizon)
    return np.clip(rows, 0, last), rows > last


class WindowIndex:
    """All windows over a list of episodes, numbered through: episode by episode, frame by frame."""

    def __init__(self, episode_frames: list[int] | tuple[int, ...]):
        """Number the windows over episodes of these lengths.

        Raises:
            ConfigError: there is no window.
        """
        self.episode_frames = np.asarray(episode_frames, dtype=np.int64)
        if self.episode_frames.sum() < 1:
            raise ConfigError("The chosen split has no frames: choose a split that has episodes.")
        self.starts = np.concatenate([[0], np.cumsum(self.episode_frames)[:-1]])

    def __len__(self) -> int:
        return int(self.episode_frames.sum())

    def locate(self, windows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The episode number and the frame t of each window, both (n,) int64.

        Raises:
            IndexError: a window number is not in [0, len).
        """
        windows = np.asarray(windows, dtype=np.int64)
        if windows.size and (windows.min() < 0 or windows.max() >= len(self)):
            raise IndexError(f"window numbers {windows.min()} to {windows.max()} are not all in [0, {len(self)})")
        episodes = np.searchsorted(self.starts, windows, side="right") - 1
        return episodes, windows - self.starts[episodes]
