"""Runs the frozen vision tower over every image of a dataset, once, into the feature cache.

A run that was killed goes on with the missing episodes; a finished cache is recognised before any deep-learning library
is imported. Before the cache is committed, a few frames go through the path that training and rollouts use, one window
at a time, and must give what is stored.
"""

import dataclasses
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from roboimi.errors import ConfigError, DataError, EncoderError
from roboimi.progress import Progress
from roboimi.storage.store import Store
from roboimi.storage.unfinished import unfinished_folder
from roboimi.vla.data.feature_cache import (
    COMMIT_NAME,
    DTYPE,
    SCHEMA,
    FeatureCache,
    StoredEpisode,
    cache_prefix,
    committed_cache,
    store_episode,
    stored_episode,
)
from roboimi.vla.data.manifest import DatasetRef, EpisodeEntry
from roboimi.vla.data.simple_robot_dataset import SimpleRobotDataset
from roboimi.vla.models.encoder_spec import EncoderSpec

PARITY_TOLERANCE = 2e-3
"""Largest accepted |stored - online| / |online| of one feature vector. Rounding to float16 alone gives up to 5e-4."""

PARITY_WINDOWS = 6


@dataclasses.dataclass(frozen=True)
class Encoded:
    """What `encode_features` did.

    Attributes:
        prefix: of the cache in the store.
        document: the commit; None while other shards are missing.
        encoded_episodes: how many were encoded now.
        recognised: whether the cache was finished before.
    """

    prefix: str
    document: dict[str, Any] | None
    encoded_episodes: int
    recognised: bool


def encode_features(
    store: Store,
    ref: DatasetRef,
    encoder: str,
    *,
    batch_size: int = 64,
    shard: tuple[int, int] | None = None,
    device: str = "auto",
) -> Encoded:
    """Bring the feature cache of a dataset under an encoder into being.

    Args:
        store: where the cache lives.
        ref: the dataset.
        encoder: name of the tower, as in `EncoderSpec.parse`.
        batch_size: images encoded together.
        shard: (i, n): encode only every n-th episode, from the i-th; whoever finds all of them done commits.
        device: `cpu`, `cuda`, or `auto`.

    Raises:
        DataError: an episode cannot be read, or a committed cache is damaged.
        EncoderError: the tower cannot be loaded, gives features that are not finite, or parity is out of tolerance.
        ConfigError: a batch size or a shard that cannot be.
        StoreError, DiskFullError: the cache cannot be written.
    """
    index, count = shard or (0, 1)
    if batch_size < 1 or not 0 <= index < count:
        raise ConfigError(
            f"Encoding in batches of {batch_size}, shard {index} of {count}, is impossible: correct them."
        )
    spec = EncoderSpec.parse(encoder)
    prefix = cache_prefix(ref.digest, spec.digest)
    cache = committed_cache(store, ref.digest, spec.digest)
    if cache is not None:
        return Encoded(prefix, cache.document, encoded_episodes=0, recognised=True)
    folder = unfinished_folder(store, prefix)
    missing = [entry for entry in ref.manifest.episodes[index::count] if stored_episode(folder, entry) is None]
    ref.bring(missing)
    tower = _Tower(spec, ref, batch_size, device)
    with Progress.start("encode", total=sum(entry.frames for entry in missing)) as progress:
        done = 0
        for entry in missing:
            progress.update(done, note=entry.file)
            stored = store_episode(folder, entry, tower.encode_episode(entry))
            for file in (stored.file, stored.note):  # what other shards, or a later attempt elsewhere, go on from
                store.put(f"{prefix}/{file}", folder / file)
            done += entry.frames
            progress.update(done, note=entry.file)
    if count > 1:
        folder = unfinished_folder(store, prefix)
    stored = [stored_episode(folder, entry) for entry in ref.manifest.episodes]
    if not all(stored):
        return Encoded(prefix, None, len(missing), recognised=False)
    document = _document(ref, spec, tower, stored)
    document["parity"] = tower.parity(FeatureCache(folder, document))
    return Encoded(prefix, store.publish(prefix, COMMIT_NAME, document), len(missing), recognised=False)


class _Tower:
    """The frozen tower on its device, fed from the dataset's files."""

    def __init__(self, spec: EncoderSpec, ref: DatasetRef, batch_size: int, device: str):
        import torch

        from roboimi.vla.models.backbones import SigLIP2DiffusionBackbone
        from roboimi.vla.models.encoder import load_vision_model

        self.spec, self.ref, self.batch_size = spec, ref, batch_size
        self.device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        model = load_vision_model(spec)
        size = model.config.image_size
        # The pixels' normalisation is the backbone's: cached and online features go through the same function.
        backbone = SigLIP2DiffusionBackbone(
            num_views=ref.contract.num_views, vision_model=model, eval_image_resize_shape=(size, size)
        )
        self.backbone = backbone.to(self.device)
        self.dataset = SimpleRobotDataset(
            ref, None, obs_horizon=1, pred_horizon=1, vision="images", image_resize_shape=(size, size)
        )
        self._numbers = {entry.file: number for number, entry in enumerate(self.dataset.entries)}

    @property
    def resize(self) -> str:
        """How stored images become the tower's input, in words."""
        native, wanted = self.ref.contract.image_shape[:2], self.dataset.image_resize_shape
        if native == wanted:
            return f"none (native {native[0]}x{native[1]})"
        return f"resize_frame {native[0]}x{native[1]} to {wanted[0]}x{wanted[1]}"

    def encode_episode(self, entry: EpisodeEntry) -> np.ndarray:
        """(T, V, D) float32 features of one episode; the next images are read while these are encoded."""
        features = [self._encode(images) for images in self._read_ahead(entry)]
        joined = np.concatenate(features)
        if not np.isfinite(joined).all():
            frame = int(np.argwhere(~np.isfinite(joined))[0][0])
            raise EncoderError(
                f"The encoder {self.spec.name} gives features that are not finite for {entry.file} at frame {frame}: "
                "choose another encoder or precision."
            )
        return joined

    def parity(self, cache: FeatureCache) -> dict[str, Any]:
        """Encode a few windows alone, as training and rollouts do, and compare with what is stored.

        Raises:
            EncoderError: a feature vector differs by more than the tolerance.
        """
        windows = np.unique(np.linspace(0, len(self.dataset) - 1, PARITY_WINDOWS).round().astype(np.int64))
        worst = 0.0
        for window in windows:
            (episode,), (frame,) = self.dataset.index.locate(np.array([window]))
            online = self._encode(self.dataset[int(window)]["images"])[0].astype(np.float64)
            file = self.dataset.entries[episode].file
            stored = cache.episode(file)[frame].astype(np.float64)
            error = np.linalg.norm(stored - online, axis=-1) / np.linalg.norm(online, axis=-1).clip(min=1e-12)
            worst = max(worst, float(error.max()))
            if not worst <= PARITY_TOLERANCE:
                raise EncoderError(
                    f"Stored features of {file} at frame {frame} differ from the encoder's by {worst:.2e}, more than "
                    f"{PARITY_TOLERANCE:.0e}: remove {cache.root} and encode again."
                )
        self.dataset.close()
        return {"windows": len(windows), "max_relative_error": worst, "tolerance": PARITY_TOLERANCE}

    def _encode(self, images: np.ndarray) -> np.ndarray:
        """(n, V, H, W, 3) uint8 -> (n, V, D) float32."""
        import torch

        pixels = torch.from_numpy(images).to(self.device)
        return self.backbone.encode_images(pixels).float().cpu().numpy()

    def _read_ahead(self, entry: EpisodeEntry) -> Iterator[np.ndarray]:
        """The episode's images in blocks of about `batch_size`, (n, V, H, W, 3)."""
        number = self._numbers[entry.file]
        step = max(1, self.batch_size // self.ref.contract.num_views)
        blocks = [range(start, min(start + step, entry.frames)) for start in range(0, entry.frames, step)]
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="read-images") as reader:
            pending = reader.submit(self.dataset.images, number, blocks[0])
            for block in [*blocks[1:], None]:
                images = pending.result()
                if block is not None:
                    pending = reader.submit(self.dataset.images, number, block)
                yield images


def _document(ref: DatasetRef, spec: EncoderSpec, tower: _Tower, stored: list[StoredEpisode]) -> dict[str, Any]:
    shapes = {item.shape[1:] for item in stored}
    if len(shapes) != 1:
        raise DataError(
            f"Features of {ref.root} have several shapes {sorted(shapes)}: remove the cache and encode again."
        )
    views, width = shapes.pop()
    return {
        "schema": SCHEMA,
        "dataset_digest": ref.digest,
        "encoder": {name: getattr(spec, name) for name in ("digest", "name", "description", "is_standin")},
        "resize": tower.resize,
        "dtype": DTYPE.name,
        "num_views": views,
        "feature_dim": width,
        "cameras": list(ref.contract.cameras),
        "frames": sum(item.shape[0] for item in stored),
        "episodes": [item.to_dict() for item in stored],
    }
