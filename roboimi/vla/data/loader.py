"""Batches for training: the small arrays of a split in memory, gathered for a whole batch at once.

A window is a few rows of small arrays, so a worker process per batch costs more than the work itself. Features come
from memory-mapped files; images, where no cache is used, are read frame by frame.
"""

import numpy as np
import torch

from roboimi.vla.data.simple_robot_dataset import SimpleRobotDataset
from roboimi.vla.data.windows import action_rows, observation_rows


class WindowLoader:
    """Turns window numbers into a batch of CPU tensors, equal to stacking the dataset's items.

        state (B, To, S) f32 · action (B, T, A) f32 · action_is_pad (B, T) bool · environment_state (B, To, E) f32
        images (B, To, V, H, W, 3) u8 or features (B, To, V, D) f16, as the dataset's `vision` says

    Raises:
        DataError: on construction and on `batch`, when an episode or its features cannot be read.
    """

    def __init__(self, dataset: SimpleRobotDataset):
        self.dataset = dataset
        self.index = dataset.index
        low_dim = [dataset.low_dim(episode) for episode in range(len(dataset.entries))]
        self._state = np.concatenate([arrays.state for arrays in low_dim])
        self._action = np.concatenate([arrays.action for arrays in low_dim])
        self._environment_state = None
        if dataset.contract.environment_state_dim:
            self._environment_state = np.concatenate([arrays.environment_state for arrays in low_dim])
        self._features: list[np.ndarray] = []
        if dataset.vision == "features":
            self._features = [dataset.features.episode(entry.file) for entry in dataset.entries]
        dataset.close()

    def __len__(self) -> int:
        return len(self.index)

    def batch(self, windows: np.ndarray) -> dict[str, torch.Tensor]:
        """The windows with these numbers (B,), in this order; see the class for keys and shapes."""
        episodes, frames = self.index.locate(windows)
        starts = self.index.starts[episodes][:, None]
        seen = observation_rows(frames, self.dataset.obs_horizon)
        acted, is_pad = action_rows(
            frames, self.index.episode_frames[episodes], self.dataset.obs_horizon, self.dataset.pred_horizon
        )
        arrays = {
            "state": self._state.take(starts + seen, axis=0),
            "action": self._action.take(starts + acted, axis=0),
            "action_is_pad": is_pad,
        }
        if self._environment_state is not None:
            arrays["environment_state"] = self._environment_state.take(starts + seen, axis=0)
        if self.dataset.vision == "features":
            arrays["features"] = self._gather_features(episodes, seen)
        elif self.dataset.vision == "images":
            arrays["images"] = self._gather_images(episodes, seen)
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def _gather_features(self, episodes: np.ndarray, seen: np.ndarray) -> np.ndarray:
        """(B, To, V, D): row by row, because each episode is a file of its own."""
        first = self._features[0]
        gathered = np.empty((*seen.shape, *first.shape[1:]), dtype=first.dtype)
        for place, (episode, rows) in enumerate(zip(episodes.tolist(), seen.tolist(), strict=True)):
            source = self._features[episode]
            for step, row in enumerate(rows):
                gathered[place, step] = source[row]
        return gathered

    def _gather_images(self, episodes: np.ndarray, seen: np.ndarray) -> np.ndarray:
        """(B, To, V, H, W, 3): each episode is opened once and each of its frames read once."""
        gathered: np.ndarray | None = None
        for episode in np.unique(episodes):
            places = np.flatnonzero(episodes == episode)
            images = self.dataset.images(int(episode), seen[places].reshape(-1))
            if gathered is None:
                gathered = np.empty((*seen.shape, *images.shape[1:]), dtype=np.uint8)
            gathered[places] = images.reshape(len(places), seen.shape[1], *images.shape[1:])
        return gathered
