"""The feature cache: what the frozen encoder says of every frame, computed once.

One folder of the store per dataset and encoder, named by a hash of both digests:

    features/<key>/episode_000000.npy     (T, V, D) float16, pooled features; row i is frame i of episode_000000.hdf5
    features/<key>/episode_000000.json    its shape and SHA-256, written after it
    features/<key>/CACHE.json             what the whole is; written last, so a folder without it is not finished

Needs no deep-learning library: a finished cache is recognised, verified and read with NumPy alone.
"""

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from roboimi.errors import DataError
from roboimi.storage.atomic import atomic_path, write_json_atomically
from roboimi.storage.byte_progress import ByteProgress
from roboimi.storage.keys import PREFIX_LENGTH, sha256_file, sha256_json
from roboimi.storage.store import Store
from roboimi.vla.data.manifest import EpisodeEntry

SCHEMA = "roboimi.features/1"
COMMIT_NAME = "CACHE.json"
DTYPE = np.dtype(np.float16)
ALGORITHM = 1
"""Raised by one when the same images and encoder would give other features; part of the key."""


@dataclasses.dataclass(frozen=True)
class StoredEpisode:
    """One file of a cache.

    Attributes:
        episode: file name of the episode in the dataset.
        file: file name in the cache.
        sha256: of the file.
        shape: (T, V, D).
    """

    episode: str
    file: str
    sha256: str
    shape: tuple[int, int, int]

    @property
    def note(self) -> str:
        """Name of the file that vouches for it."""
        return f"{Path(self.file).stem}.json"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {**dataclasses.asdict(self), "shape": list(self.shape)}


def cache_prefix(dataset_digest: str, encoder_digest: str) -> str:
    """Where the features of a dataset under an encoder lie in the store."""
    key = {"algorithm": ALGORITHM, "dataset": dataset_digest, "encoder": encoder_digest, "dtype": DTYPE.name}
    return f"features/{sha256_json(key)[:PREFIX_LENGTH]}"


def store_episode(folder: Path, entry: EpisodeEntry, features: np.ndarray) -> StoredEpisode:
    """Write the features of one episode: the array whole, then the note that vouches for it.

    Args:
        folder: of the cache.
        entry: the episode.
        features: (T, V, D), finite; stored as float16.

    Raises:
        DataError: the array does not have a row a frame, or a value does not fit into float16.
        DiskFullError, StoreError: the files cannot be written.
    """
    stem = Path(entry.file).stem
    if features.ndim != 3 or len(features) != entry.frames:
        raise DataError(f"Features of {entry.file} have the shape {features.shape}, not ({entry.frames}, V, D).")
    with np.errstate(over="ignore"):
        halves = np.ascontiguousarray(features, dtype=DTYPE)
    if not np.isfinite(halves).all():
        frame = int(np.argwhere(~np.isfinite(halves))[0][0])
        raise DataError(f"Features of {entry.file} at frame {frame} are not finite in float16: check the encoder.")
    buffer = io.BytesIO()
    np.save(buffer, halves, allow_pickle=False)
    with atomic_path(folder / f"{stem}.npy") as temporary:
        temporary.write_bytes(buffer.getbuffer())
    stored = StoredEpisode(entry.file, f"{stem}.npy", sha256_file(folder / f"{stem}.npy"), halves.shape)
    write_json_atomically(folder / stored.note, stored.to_dict())
    return stored


def stored_episode(folder: Path, entry: EpisodeEntry) -> StoredEpisode | None:
    """The stored features of an episode, or None where they are missing, unfinished, or not what their note says."""
    note = folder / f"{Path(entry.file).stem}.json"
    try:
        document = json.loads(note.read_text())
        stored = StoredEpisode(**{**document, "shape": tuple(document["shape"])})
        _check_file(folder, stored, entry.frames)
    except (OSError, ValueError, TypeError, KeyError, DataError):
        return None
    return stored if stored.episode == entry.file else None


class FeatureCache:
    """A committed cache; gives each episode's features as a memory map."""

    def __init__(self, root: Path, document: dict[str, Any]):
        self.root = root
        self.document = document
        self._stored = {item["episode"]: item for item in document["episodes"]}
        self._maps: dict[str, np.ndarray] = {}

    @property
    def feature_dim(self) -> int:
        """D."""
        return self.document["feature_dim"]

    def episode(self, file: str) -> np.ndarray:
        """(T, V, D) float16 of the episode `file` ("episode_000000.hdf5"), mapped read-only.

        Raises:
            DataError: the cache does not have it, or its file is missing or of another shape.
        """
        if file not in self._maps:
            if file not in self._stored:
                raise DataError(f"Feature cache {self.root} does not have {file}: it belongs to another dataset.")
            self._maps[file] = _map(self.root / self._stored[file]["file"], self._stored[file]["shape"])
        return self._maps[file]

    def verify(self) -> None:
        """Compare every file with its hash.

        Raises:
            DataError: a file is missing or damaged.
        """
        for item in self._stored.values():
            _check_file(self.root, StoredEpisode(**{**item, "shape": tuple(item["shape"])}), item["shape"][0])

    def __getstate__(self) -> dict[str, Any]:
        # A pickled memory map would carry the whole file along.
        return {**self.__dict__, "_maps": {}}


def committed_cache(store: Store, dataset_digest: str, encoder_digest: str) -> FeatureCache | None:
    """The verified cache of a dataset under an encoder, or None where it was never finished.

    Raises:
        DataError: what is committed there belongs to another dataset or encoder, or a file is missing or damaged.
    """
    prefix = cache_prefix(dataset_digest, encoder_digest)
    document = store.committed(prefix, COMMIT_NAME)
    if document is None:
        return None
    size = document.get("frames", 0) * document.get("num_views", 0) * document.get("feature_dim", 0) * DTYPE.itemsize
    with ByteProgress("fetch features", size) as count:
        root = store.fetch(prefix, count=count)
    _check_document(root, document, dataset_digest, encoder_digest)
    cache = FeatureCache(root, document)
    cache.verify()
    return cache


def open_feature_cache(store: Store, dataset_digest: str, encoder_digest: str) -> FeatureCache:
    """Open and verify the cache of a dataset under an encoder.

    Raises:
        DataError: it was never finished, belongs to another dataset or encoder, or a file is missing or damaged.
    """
    cache = committed_cache(store, dataset_digest, encoder_digest)
    if cache is None:
        raise DataError(
            f"Store {store.uri} has no features of the dataset {dataset_digest[:12]}… under the encoder "
            f"{encoder_digest[:12]}…: encode them first."
        )
    return cache


def _check_document(root: Path, document: dict[str, Any], dataset_digest: str, encoder_digest: str) -> None:
    if document.get("schema") != SCHEMA:
        raise DataError(f"Feature cache {root} does not have the schema {SCHEMA!r}: remove it and encode again.")
    for what, wanted, found in (
        ("dataset", dataset_digest, document["dataset_digest"]),
        ("encoder", encoder_digest, document["encoder"]["digest"]),
    ):
        if found != wanted:
            raise DataError(
                f"Feature cache {root} was made with the {what} {found[:12]}…, not {wanted[:12]}…: remove it and "
                "encode again."
            )


def _check_file(folder: Path, stored: StoredEpisode, frames: int) -> None:
    path = folder / stored.file
    if stored.shape[0] != frames:
        raise DataError(f"Feature file {path} has {stored.shape[0]} rows for {frames} frames: encode it again.")
    _map(path, stored.shape)
    if sha256_file(path) != stored.sha256:
        raise DataError(f"Feature file {path} is damaged (its SHA-256 differs): remove {folder} and encode again.")


def _map(path: Path, shape: Any) -> np.ndarray:
    try:
        features = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"Feature file {path} cannot be read ({error}): remove its folder and encode again.") from error
    if features.dtype != DTYPE or features.shape != tuple(shape):
        raise DataError(
            f"Feature file {path} holds {features.dtype} of shape {features.shape}, not {DTYPE} of {tuple(shape)}: "
            "remove its folder and encode again."
        )
    return features
