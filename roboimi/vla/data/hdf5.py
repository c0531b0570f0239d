"""Opening HDF5 files of unknown origin: nothing outside the file itself is ever read.

HDF5 follows soft and external links, virtual datasets and external storage into other files, absolute paths included,
so an episode could make its reader open any file of the machine. Every access goes through hard links only, and a
dataset whose bytes lie elsewhere is refused.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import h5py

from roboimi.errors import DataError


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
        link = group.get(part, getlink=True) if isinstance(group, h5py.Group) else None
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
    """All datasets of a file by path, and every object that leads outside of it; no group is visited twice."""
    visited = {h5py.h5o.get_info(file["/"].id).addr}
    pending: list[tuple[str, h5py.Group]] = [("", file["/"])]
    while pending:
        prefix, group = pending.pop()
        for part in group:
            name = f"{prefix}{part}"
            link = group.get(part, getlink=True)
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


def _foreign_link(name: str, link: object) -> Foreign:
    if isinstance(link, h5py.ExternalLink):
        return Foreign(name, "external link", f"{link.filename}:{link.path}")
    if isinstance(link, h5py.SoftLink):
        return Foreign(name, "soft link", link.path)
    return Foreign(name, "unknown link", type(link).__name__)


def _foreign_storage(dataset: h5py.Dataset) -> tuple[str, str] | None:
    if dataset.is_virtual:
        return ("virtual dataset", ", ".join(source.file_name for source in dataset.virtual_sources()))
    if dataset.external:
        return ("external storage", ", ".join(str(entry[0]) for entry in dataset.external))
    return None


def first_line(error: Exception) -> str:
    """HDF5's own reason for an error, without its stack."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__
