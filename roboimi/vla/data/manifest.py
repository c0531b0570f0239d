"""The manifest: which episodes a dataset has, byte for byte, under which contract and split.

`MANIFEST.json` is written last, so a folder without one is not a dataset yet. Its content names the dataset: the
digest is the SHA-256 of its canonical JSON, and it holds the SHA-256 of every episode.

    {"schema": "roboimi.dataset/1",
     "contract": {...},                                     see `DatasetContract`
     "source": {...},                                       how the episodes were made
     "layout": {"format": "act-hdf5", "arrays": [...]},     the arrays that every episode has
     "split": {"train": [file, ...], "validation": [file, ...]},
     "episodes": [{"file": ..., "sha256": ..., "bytes": ..., "frames": ...}, ...]}
"""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import h5py
import numpy as np

from roboimi.errors import DataError
from roboimi.storage.atomic import write_json_atomically
from roboimi.storage.keys import sha256_file, sha256_json
from roboimi.vla.data.contract import DatasetContract
from roboimi.vla.data.episode import ACTION
from roboimi.vla.data.hdf5 import get_dataset, open_file, walk

SCHEMA = "roboimi.dataset/1"
MANIFEST_NAME = "MANIFEST.json"
RECIPE_NAME = "RECIPE.json"
"""Beside the manifest of a recorded dataset: what the recording follows from (`roboimi.envs.recipe`)."""
EPISODE_FORMAT = "act-hdf5"
SPLITS = ("train", "validation")

_EPISODE_NAME = re.compile(r"episode_\d{1,12}\.hdf5")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_DIGEST_MARK = "@sha256:"


@dataclasses.dataclass(frozen=True)
class EpisodeEntry:
    """One episode of a manifest: file name in the dataset's folder, SHA-256, size in bytes, rows T."""

    file: str
    sha256: str
    bytes: int
    frames: int


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What `MANIFEST.json` says."""

    contract: DatasetContract
    source: dict[str, Any]
    layout: dict[str, Any]
    split: dict[str, tuple[str, ...]]
    episodes: tuple[EpisodeEntry, ...]

    @property
    def digest(self) -> str:
        """Hex SHA-256 of the canonical JSON: the name of the dataset's content."""
        return sha256_json(self.to_dict())

    def entries(self, split: str | None = None) -> tuple[EpisodeEntry, ...]:
        """The episodes of one split in its order, or all in the manifest's order.

        Raises:
            DataError: there is no such split, or it names an episode that the manifest does not have.
        """
        if split is None:
            return self.episodes
        if split not in self.split:
            raise DataError(f"The manifest has no split {split!r}: choose one of {', '.join(sorted(self.split))}.")
        by_file = {entry.file: entry for entry in self.episodes}
        if unknown := [file for file in self.split[split] if file not in by_file]:
            raise DataError(
                f"The manifest's split {split!r} names {unknown[0]}, which it does not list: write it again."
            )
        return tuple(by_file[file] for file in self.split[split])

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, as in the file."""
        return {
            "schema": SCHEMA,
            "contract": self.contract.to_dict(),
            "source": self.source,
            "layout": self.layout,
            "split": {name: list(files) for name, files in self.split.items()},
            "episodes": [dataclasses.asdict(entry) for entry in self.episodes],
        }

    @classmethod
    def from_dict(cls, document: Any, where: str = MANIFEST_NAME) -> Self:
        """Read a manifest strictly: nothing missing, nothing unknown, no file name that leaves the folder.

        Raises:
            DataError: one sentence on the first thing that is wrong; `where` names the file in it.
        """
        if not isinstance(document, dict) or document.get("schema") != SCHEMA:
            raise DataError(f"{where} does not have the schema {SCHEMA!r}: write the manifest again with this version.")
        fields = {"schema", *(field.name for field in dataclasses.fields(cls))}
        if document.keys() != fields:
            names = ", ".join(sorted(document.keys() ^ fields))
            raise DataError(f"{where} has missing or unknown fields ({names}): write the manifest again.")
        split = document["split"]
        if not isinstance(split, dict) or set(split) != set(SPLITS):
            raise DataError(f"{where} has a split other than {' and '.join(SPLITS)}: write the manifest again.")
        return cls(
            contract=DatasetContract.from_dict(document["contract"]),
            source=_object(document["source"], "source", where),
            layout=_object(document["layout"], "layout", where),
            split={name: tuple(_file_name(file, where) for file in split[name]) for name in SPLITS},
            episodes=tuple(_entry(item, where) for item in document["episodes"]),
        )


@dataclasses.dataclass(frozen=True)
class DatasetRef:
    """A dataset that was found.

    Attributes:
        root: its folder. Of a dataset in a store it is a folder of this machine, into which `bring` brings episodes.
        manifest: what it holds.
        digest: of the manifest.
        source: the store's URI, or None.
    """

    root: Path
    manifest: Manifest
    digest: str
    source: str | None = None

    @property
    def contract(self) -> DatasetContract:
        """The dataset's contract."""
        return self.manifest.contract

    @property
    def text(self) -> str:
        """`PATH@sha256:<digest>` or `URI@sha256:<digest>`, which `resolve_dataset` takes back."""
        return f"{self.source or self.root}{_DIGEST_MARK}{self.digest}"

    def path(self, entry: EpisodeEntry) -> Path:
        """Where an episode lies, once it was brought."""
        return self.root / entry.file

    def bring(self, entries: Sequence[EpisodeEntry] | None = None, *, show: bool = True) -> Self:
        """Make sure that these episodes, or all, are on this machine; those of a store are fetched and verified.

        Args:
            entries: None: all.
            show: whether there is a progress bar; a terminal has room for one at a time.

        Returns:
            The reference itself.

        Raises:
            DataError: an episode in the store is missing, or is not what the manifest says.
            StoreError: the store cannot be read.
        """
        if self.source is not None:
            from roboimi.vla.data.dataset_store import bring_episodes

            bring_episodes(self, self.manifest.episodes if entries is None else entries, show=show)
        return self


def is_episode_name(name: str) -> bool:
    """Whether `name` is an episode's file name: `episode_`, digits, `.hdf5`."""
    return _EPISODE_NAME.fullmatch(name) is not None


def describe_episode(path: Path) -> EpisodeEntry:
    """Hash an episode and count its rows.

    Raises:
        DataError: it is missing, not HDF5, or has no `/action`.
    """
    path = Path(path)
    with open_file(path) as file:
        action = get_dataset(file, ACTION)
        if not action.shape:
            raise DataError(f"Episode {path} has an /action without rows: record it again, or drop it.")
        frames = action.shape[0]
    return EpisodeEntry(path.name, sha256_file(path), path.stat().st_size, frames)


def split_episodes(files: Sequence[str], validation_fraction: float = 0.1, seed: int = 0) -> dict[str, list[str]]:
    """Draw whole episodes for validation: `round(fraction * n)`, at least one where there are two or more.

    Args:
        files: file names; their order does not matter.
        validation_fraction: in [0, 1); 0 holds nothing out.
        seed: of the draw.
    """
    names = sorted(files)
    held_out = round(validation_fraction * len(names))
    if validation_fraction > 0 and len(names) > 1:
        held_out = min(max(held_out, 1), len(names) - 1)
    ranked = np.argsort(np.random.PCG64(seed).random_raw(len(names)), kind="stable") if names else []
    chosen = {names[index] for index in ranked[:held_out]}
    return {"train": [n for n in names if n not in chosen], "validation": [n for n in names if n in chosen]}


def read_manifest(root: Path) -> Manifest:
    """Read `MANIFEST.json` of a dataset folder.

    Raises:
        DataError: the folder or the manifest is not there, or the manifest cannot be understood.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"Dataset folder {root} is not there: record one with `roboimi record`, or correct the path.")
    path = root / MANIFEST_NAME
    try:
        text = path.read_text()
    except FileNotFoundError as error:
        raise DataError(
            f"Dataset folder {root} has no {MANIFEST_NAME}: let the recording finish, or import the episodes first."
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}): restore it, or write the manifest again.") from error
    try:
        document = json.loads(text)
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error}): restore it, or write the manifest again.") from error
    return Manifest.from_dict(document, str(path))


def write_manifest(
    root: Path,
    *,
    contract: DatasetContract,
    source: Mapping[str, Any],
    split: Mapping[str, Sequence[str]],
    episodes: Sequence[EpisodeEntry] | None = None,
) -> Manifest:
    """Write `MANIFEST.json`, atomically and after everything else: from then on the folder is a dataset.

    Args:
        root: the dataset's folder, holding every episode of the split.
        contract: what all episodes share.
        source: how they were made (recipe, seeds, versions); plain JSON types.
        split: file names under `train` and `validation`, disjoint.
        episodes: what `describe_episode` said of each; computed where not given.

    Raises:
        DataError: the split overlaps, is empty, or names another set of files than `episodes`.
        DiskFullError, StoreError: the manifest cannot be written.
    """
    root = Path(root)
    train, validation = (tuple(split.get(name, ())) for name in SPLITS)
    files = sorted({*train, *validation})
    if not train:
        raise DataError(f"Dataset {root} has no training episode: give at least one.")
    if len(files) != len(train) + len(validation):
        raise DataError(f"Dataset {root} has an episode twice in its split: put each in one place.")
    entries = sorted(episodes or (describe_episode(root / file) for file in files), key=lambda entry: entry.file)
    if [entry.file for entry in entries] != files:
        raise DataError(f"Dataset {root} has a split of other episodes than were described: describe all of the split.")
    with open_file(root / files[0]) as file:
        arrays = sorted(name for name, item in walk(file) if isinstance(item, h5py.Dataset))
    document = {
        "schema": SCHEMA,
        "contract": contract.to_dict(),
        "source": dict(source),
        "layout": {"format": EPISODE_FORMAT, "arrays": arrays},
        "split": {"train": list(train), "validation": list(validation)},
        "episodes": [dataclasses.asdict(entry) for entry in entries],
    }
    manifest = Manifest.from_dict(document, str(root / MANIFEST_NAME))
    write_json_atomically(root / MANIFEST_NAME, manifest.to_dict())
    return manifest


def resolve_dataset(text: str | Path) -> DatasetRef:
    """Find the dataset at `PATH`, `PATH@sha256:<64 hex digits>`, or, in a store, `URI@sha256:<64 hex digits>`.

    Of a dataset in a store only the manifest is read; see `DatasetRef.bring`.

    Raises:
        DataError: the folder or its manifest is not there, or the manifest has another digest than the text asks for.
        StoreError: the store cannot be read.
    """
    text = str(text)
    folder, mark, wanted = text.rpartition(_DIGEST_MARK)
    if not mark:
        folder = text
    elif not _SHA256.fullmatch(wanted):
        raise DataError(f"Dataset {text!r} has a digest that is not 64 hex digits: copy the reference whole.")
    if "://" in folder:
        from roboimi.vla.data.dataset_store import find_pushed

        return find_pushed(folder, wanted if mark else "")
    root = Path(folder).expanduser().absolute()
    manifest = read_manifest(root)
    digest = manifest.digest
    if mark and digest != wanted:
        raise DataError(
            f"Dataset {root} has the digest {digest[:12]}…, not {wanted[:12]}… as asked: it has changed, or is "
            "another one."
        )
    return DatasetRef(root, manifest, digest)


def _object(value: Any, name: str, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"{where} has a {name} that is not an object: write the manifest again.")
    return value


def _file_name(value: Any, where: str) -> str:
    if not isinstance(value, str) or not is_episode_name(value):
        raise DataError(f"{where} names the episode {value!r}: episodes are called episode_<number>.hdf5.")
    return value


def _entry(item: Any, where: str) -> EpisodeEntry:
    fields = {field.name for field in dataclasses.fields(EpisodeEntry)}
    if not isinstance(item, dict) or item.keys() != fields:
        raise DataError(f"{where} lists an episode with other fields than {', '.join(sorted(fields))}: write it again.")
    if not isinstance(item["sha256"], str) or not _SHA256.fullmatch(item["sha256"]):
        raise DataError(f"{where} lists {item['file']!r} without a SHA-256: write the manifest again.")
    for name in ("bytes", "frames"):
        if not isinstance(item[name], int) or isinstance(item[name], bool) or item[name] < 0:
            raise DataError(f"{where} lists {item['file']!r} with {name}={item[name]!r}: write the manifest again.")
    return EpisodeEntry(_file_name(item["file"], where), item["sha256"], item["bytes"], item["frames"])
