"""Windows over the episodes of one split, read from disk one item at a time."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np

from roboimi.errors import ConfigError, DataError
from roboimi.vla.data.episode import EpisodeFile
from roboimi.vla.data.manifest import DatasetRef, EpisodeEntry
from roboimi.vla.data.windows import WindowIndex, action_rows, observation_rows

Vision = Literal["images", "features", "none"]
"""What an item holds of the cameras: pictures, features of the frozen encoder, or nothing."""

MAX_OPEN_FILES = 32


class Features(Protocol):
    """Where the frozen encoder's features of an episode come from; see `feature_cache.FeatureCache`."""

    def episode(self, file: str) -> np.ndarray:
        """(T, V, D) float16 of one episode."""


class LowDimArrays:
    """The small arrays of one episode, whole.

    Attributes:
        state: (T, S) float32.
        action: (T, A) float32.
        environment_state: (T, E) float32, or None where E = 0.
    """

    def __init__(self, episode: EpisodeFile, entry: EpisodeEntry):
        self.state = episode.state()
        self.action = episode.action()
        self.environment_state = episode.environment_state() if episode.contract.environment_state_dim else None
        for name, array in vars(self).items():
            if array is not None and len(array) != entry.frames:
                raise DataError(
                    f"Episode {episode.path} has {len(array)} rows of {name}, not {entry.frames} as the manifest says: "
                    "validate the dataset."
                )


class SimpleRobotDataset:
    """Item i is the window of `WindowIndex` number i, as NumPy arrays in raw units and without a batch axis.

        state (To, S) f32 · action (T, A) f32 · action_is_pad (T,) bool · environment_state (To, E) f32 where E > 0
        images (To, V, H, W, 3) u8      with vision="images"
        features (To, V, D) f16         with vision="features"

    Images stay as stored (256x256) unless `image_resize_shape` is given. Files are opened on first use and never cross
    a process border, so items may be asked for by forked and spawned workers. With vision="none", image data is never
    touched. A `torch.utils.data.DataLoader` takes this class as it is.
    """

    def __init__(
        self,
        ref: DatasetRef,
        split: str | None = "train",
        *,
        obs_horizon: int,
        pred_horizon: int,
        vision: Vision = "images",
        features: Features | None = None,
        image_resize_shape: Sequence[int] | None = None,
    ):
        """Choose the episodes and what to read of them; nothing is opened yet.

        Args:
            ref: the dataset.
            split: `train`, `validation`, or None for all episodes.
            obs_horizon: To.
            pred_horizon: T.
            vision: `images`, `features` or `none`.
            features: required with vision="features".
            image_resize_shape: (height, width), or None to leave images as they are stored.

        Raises:
            ConfigError: horizons below 1, an unknown `vision`, or `features` missing; or the split has no frames.
            DataError: there is no such split.
        """
        if obs_horizon < 1 or pred_horizon < 1:
            raise ConfigError(f"obs_horizon={obs_horizon} and pred_horizon={pred_horizon} must be at least 1.")
        if vision not in ("images", "features", "none"):
            raise ConfigError(f"vision={vision!r} is unknown: choose images, features or none.")
        if (vision == "features") != (features is not None):
            raise ConfigError("A feature cache and vision='features' go together: give both or neither.")
        self.contract = ref.contract
        self._ref, self._whole_split = ref, split is not None
        self.entries = ref.manifest.entries(split)
        self.index = WindowIndex([entry.frames for entry in self.entries])
        self.obs_horizon, self.pred_horizon = obs_horizon, pred_horizon
        self.vision, self.features = vision, features
        self.image_resize_shape = tuple(image_resize_shape) if image_resize_shape else None
        self._paths = [ref.path(entry) for entry in self.entries]
        self._open: OrderedDict[int, EpisodeFile] = OrderedDict()
        self._low_dim: dict[int, LowDimArrays] = {}

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, window: int) -> dict[str, np.ndarray]:
        """The item of one window; see the class.

        Raises:
            IndexError: there is no such window.
            DataError: the episode is missing, damaged, or not what the manifest and the contract say.
        """
        episodes, frames = self.index.locate(np.asarray([window]))
        episode = int(episodes[0])
        low_dim = self.low_dim(episode)
        seen = observation_rows(frames, self.obs_horizon)[0]
        rows, is_pad = action_rows(frames, self.index.episode_frames[episodes], self.obs_horizon, self.pred_horizon)
        item = {"state": low_dim.state[seen], "action": low_dim.action[rows[0]], "action_is_pad": is_pad[0]}
        if low_dim.environment_state is not None:
            item["environment_state"] = low_dim.environment_state[seen]
        if self.vision == "images":
            item["images"] = self.images(episode, seen)
        elif self.vision == "features":
            item["features"] = np.asarray(self.features.episode(self.entries[episode].file)[seen])
        return item

    def low_dim(self, episode: int) -> LowDimArrays:
        """State, action and environment state of an episode by its number in the split; read once."""
        if episode not in self._low_dim:
            self._low_dim[episode] = LowDimArrays(self._episode_file(episode), self.entries[episode])
        return self._low_dim[episode]

    def images(self, episode: int, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """(n, V, H, W, 3) uint8 at `rows` of an episode, resized where the dataset was asked to."""
        images = self._episode_file(episode).images(rows)
        if self.image_resize_shape in (None, images.shape[2:4]):
            return images
        from roboimi.envs.images import resize_frame

        flat = [resize_frame(image, self.image_resize_shape) for image in images.reshape(-1, *images.shape[2:])]
        return np.stack(flat).reshape(*images.shape[:2], *self.image_resize_shape, 3)

    def close(self) -> None:
        """Close all files; later reads open them again."""
        while self._open:
            self._open.popitem()[1].close()

    def _episode_file(self, episode: int) -> EpisodeFile:
        if episode not in self._open:
            while len(self._open) >= MAX_OPEN_FILES:
                self._open.popitem(last=False)[1].close()
            # A split is read whole sooner or later, and comes faster at once; of all episodes a shard needs only some.
            self._ref.bring(self.entries if self._whole_split else [self.entries[episode]], show=False)
            self._whole_split = False
            self._open[episode] = EpisodeFile(self._paths[episode], self.contract)
        self._open.move_to_end(episode)
        return self._open[episode]

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_open": OrderedDict()}
