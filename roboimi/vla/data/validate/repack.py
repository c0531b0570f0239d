"""A clean copy of a dataset: the same numbers, one image a chunk, every array with a checksum; the original is kept.

Only arrays and plain attributes are copied, so links, unknown filters and slack bytes stay behind. The copy is checked
value by value before its manifest is written, which comes last.
"""

from pathlib import Path

import h5py
import numpy as np

from roboimi.errors import DataError
from roboimi.progress import Progress
from roboimi.storage.atomic import atomic_path, writing
from roboimi.vla.data.episode import IMAGES
from roboimi.vla.data.hdf5 import foreign_filters, has_references, open_file, read_attribute, walk
from roboimi.vla.data.manifest import DatasetRef, describe_episode, resolve_dataset, write_manifest

_ROWS = 32


def repack(ref: DatasetRef, out: Path) -> DatasetRef:
    """Write a clean copy of the dataset at `ref` into the folder `out`.

    Args:
        ref: a dataset whose structure is sound; warnings about its layout are what this is for.
        out: an empty or missing folder.

    Returns:
        The copy.

    Raises:
        DataError: `out` is not empty, or an episode cannot be copied.
        DiskFullError, StoreError: the copy cannot be written.
    """
    out = Path(out).expanduser().absolute()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} is not an empty folder: choose another place for the copy, nothing is overwritten.")
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    entries = []
    with Progress.start("repack", total=len(ref.manifest.episodes)) as progress:
        for entry in ref.manifest.episodes:
            repack_episode(ref.path(entry), out / entry.file)
            entries.append(describe_episode(out / entry.file))
            progress.update(len(entries), note=entry.file)
    write_manifest(
        out,
        contract=ref.contract,
        source={**ref.manifest.source, "repacked_from": ref.digest},
        split=ref.manifest.split,
        episodes=entries,
    )
    return resolve_dataset(out)


def repack_episode(source: Path, target: Path) -> None:
    """Copy one episode; see `repack`."""
    with atomic_path(target) as temporary:
        with open_file(source) as old, h5py.File(temporary, "w", libver="latest") as new:
            for name in old.attrs:
                value = read_attribute(old, name)
                new.attrs[name] = value
            for name, item in sorted(walk(old)):
                if not isinstance(item, h5py.Dataset):
                    raise DataError(f"Episode {source} has a {item.kind} at /{name}: it cannot be copied.")
                _copy(item, new, name, source)
        with open_file(source) as old, open_file(temporary) as new:
            for name, item in walk(old):
                _require_equal(item, new[name], f"{source} at /{name}")


def _copy(old: h5py.Dataset, new: h5py.File, name: str, source: Path) -> None:
    if not old.shape or 0 in old.shape or old.dtype.kind not in "fiub" or foreign_filters(old):
        raise DataError(
            f"Episode {source} has a /{name} of {old.dtype} {old.shape} that no reader needs: drop it first."
        )
    if has_references(old.dtype):
        raise DataError(f"Episode {source} has references at /{name}: it cannot be copied.")
    image = name.startswith(f"{IMAGES}/")
    chunks = (1, *old.shape[1:]) if image else old.shape
    packing = {"compression": "gzip", "compression_opts": 1} if image else {}
    copy = new.create_dataset(name, old.shape, old.dtype, chunks=chunks, fletcher32=True, **packing)
    for start in range(0, old.shape[0], _rows(old)):
        copy[start : start + _rows(old)] = old[start : start + _rows(old)]


def _require_equal(old: h5py.Dataset, new: h5py.Dataset, where: str) -> None:
    for start in range(0, old.shape[0], _rows(old)):
        first, second = old[start : start + _rows(old)], new[start : start + _rows(old)]
        if not np.array_equal(first, second, equal_nan=first.dtype.kind == "f"):
            raise DataError(f"The copy of {where} is not what was read: check the disk, and try again.")


def _rows(dataset: h5py.Dataset) -> int:
    return max(_ROWS, dataset.chunks[0] if dataset.chunks else 1)
