"""Opening HDF5 files of unknown origin: nothing outside the file itself is ever read.

HDF5 follows soft and external links, virtual datasets and external storage into other files, absolute paths included,
so an episode could make its reader open any file of the machine. Every access goes through hard links only, and a
dataset whose bytes lie elsewhere is refused. So is one behind a filter that HDF5 would load as a plug-in.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from roboimi.errors import DataError

MOST_OBJECTS = 1000
"""Objects of one file that are looked at; an episode has about ten."""

MOST_DEPTH = 32
"""Groups within groups that are looked at."""

BUILT_IN_FILTERS = {1: "gzip", 2: "shuffle", 3: "fletcher32", 32000: "lzf"}
"""Filters that come with h5py, by HDF5's number. Any other makes HDF5 load a library from its plug-in folders."""

_MOST_ATTRIBUTE_BYTES = 65536


@dataclasses.dataclass(frozen=True)
class Foreign:
    """An object of a file that leads outside of it.

    Attributes:
        name: its path in the file.
        kind: `soft link`, `external link`, `virtual dataset`, `external storage` or `unknown link`.
        target: where it leads, as far as the file says.
    """

    name: str
    kind: str
    target: str


def open_file(path: Path) -> h5py.File:
    """Open a file for reading, without a lock, so that read-only mounts work.

    Raises:
        DataError: there is no such file, or it is not readable as HDF5.
    """
    try:
        return h5py.File(path, "r", locking=False)
    except FileNotFoundError as error:
        raise DataError(f"Episode {path} is not there: restore it, or write the manifest again without it.") from error
    except OSError as error:
        raise DataError(
            f"Episode {path} cannot be opened as HDF5 ({first_line(error)}): restore or drop it."
        ) from error


def get_dataset(file: h5py.File, name: str) -> h5py.Dataset:
    """The dataset at `name` ("observations/qpos"), reached through hard links only and stored in this file.

    Raises:
        DataError: it is missing, is a group, or leads outside of the file.
    """
    group: h5py.Group | h5py.Dataset = file
    for part in name.split("/"):
        link = _link(group, part) if isinstance(group, h5py.Group) else None
        if link is None:
            raise DataError(f"Episode {file.filename} has no /{name}: record it again, or drop it from the dataset.")
        if not isinstance(link, h5py.HardLink):
            raise DataError(f"Episode {file.filename} has a link instead of data on the way to /{name}: refused.")
        group = group[part]
    if not isinstance(group, h5py.Dataset):
        raise DataError(f"Episode {file.filename} has a group, not an array, at /{name}: record it again, or drop it.")
    if foreign := _foreign_storage(group):
        raise DataError(f"Episode {file.filename} keeps /{name} outside of the file ({foreign[0]}): refused.")
    return group


def walk(file: h5py.File) -> Iterator[tuple[str, h5py.Dataset | Foreign]]:
    """All datasets of a file by path, and every object that leads outside of it; no group is visited twice.

    Raises:
        DataError: the file has more objects, or groups within groups, than any episode has.
    """
    visited = {h5py.h5o.get_info(file["/"].id).addr}
    pending: list[tuple[str, h5py.Group]] = [("", file["/"])]
    objects = 0
    while pending:
        prefix, group = pending.pop()
        if prefix.count("/") > MOST_DEPTH:
            raise DataError(f"Episode {file.filename} has groups more than {MOST_DEPTH} deep: it is no episode.")
        for part in group:
            objects += 1
            if objects > MOST_OBJECTS:
                raise DataError(f"Episode {file.filename} holds more than {MOST_OBJECTS} objects: it is no episode.")
            name = f"{prefix}{part}"
            link = _link(group, part)
            if not isinstance(link, h5py.HardLink):
                yield name, _foreign_link(name, link)
                continue
            child = group[part]
            address = h5py.h5o.get_info(child.id).addr
            if isinstance(child, h5py.Group):
                if address not in visited:
                    visited.add(address)
                    pending.append((f"{name}/", child))
            elif isinstance(child, h5py.Dataset):
                foreign = _foreign_storage(child)
                yield name, Foreign(name, *foreign) if foreign else child


def foreign_filters(dataset: h5py.Dataset) -> list[int]:
    """Numbers of the dataset's filters that are not built in."""
    plist = dataset.id.get_create_plist()
    numbers = [plist.get_filter(index)[0] for index in range(plist.get_nfilters())]
    return [number for number in numbers if number not in BUILT_IN_FILTERS]


def has_references(dtype: np.dtype) -> bool:
    """Whether elements of this type point at other objects of the file, or at regions of them."""
    if dtype.names:
        return any(has_references(dtype[name]) for name in dtype.names)
    if dtype.subdtype is not None:
        return has_references(dtype.subdtype[0])
    inner = h5py.check_vlen_dtype(dtype)
    if inner is not None and not isinstance(inner, type):
        return has_references(np.dtype(inner))
    return h5py.check_ref_dtype(dtype) is not None


def read_attribute(file: h5py.File, name: str) -> Any:
    """A small attribute of the file as a Python value; None where there is none.

    Raises:
        DataError: it is too large, or holds references.
    """
    if name not in file.attrs:
        return None
    attribute = file.attrs.get_id(name)
    declared = int(np.prod(attribute.shape or (1,), dtype=np.float64)) * attribute.dtype.itemsize
    if declared > _MOST_ATTRIBUTE_BYTES or has_references(attribute.dtype):
        raise DataError(f"Episode {file.filename} has an attribute {name!r} that is no plain value: refused.")
    value = file.attrs[name]
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def _link(group: h5py.Group, part: str) -> object | None:
    try:
        return group.get(part, getlink=True)
    except TypeError as error:  # a link class that only the program that wrote the file knows
        return error


def _foreign_link(name: str, link: object) -> Foreign:
    if isinstance(link, h5py.ExternalLink):
        return Foreign(name, "external link", f"{link.filename}:{link.path}")
    if isinstance(link, h5py.SoftLink):
        return Foreign(name, "soft link", link.path)
    return Foreign(name, "unknown link", str(link))


def _foreign_storage(dataset: h5py.Dataset) -> tuple[str, str] | None:
    if dataset.is_virtual:
        return ("virtual dataset", ", ".join(source.file_name for source in dataset.virtual_sources()))
    if dataset.external:
        return ("external storage", ", ".join(str(entry[0]) for entry in dataset.external))
    return None


def first_line(error: Exception) -> str:
    """HDF5's own reason for an error, without its stack."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__
