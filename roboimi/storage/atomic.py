"""Files that are either whole or not there: written beside their place, made durable, then renamed over it."""

import contextlib
import errno
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from roboimi.errors import DiskFullError, StoreError

TEMPORARY_PREFIX = ".writing-"
"""How the names of unfinished files begin; what a killed writer leaves behind is found by it."""

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_ROOM_TEXTS = tuple(os.strerror(number) for number in _NO_ROOM)


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary path to write to; it becomes `path` when the block ends well, and vanishes when it does not.

    Raises:
        DiskFullError: there is no room for the file.
        StoreError: the folder cannot be written.
    """
    with durable_temporary(path) as temporary, writing(path):
        yield temporary
        make_durable(temporary)
        os.replace(temporary, path)
        fsync(path.parent)


@contextlib.contextmanager
def durable_temporary(path: Path) -> Iterator[Path]:
    """Give an empty file beside `path`, hidden from listings, that is gone when the block ends.

    Raises:
        DiskFullError, StoreError: it cannot be made.
    """
    with writing(path):
        handle, name = tempfile.mkstemp(prefix=f"{TEMPORARY_PREFIX}{path.name}-", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def write_json_atomically(path: Path, document: Any) -> None:
    """Write `document` as indented JSON with sorted keys; see `atomic_path` for the errors."""
    with atomic_path(path) as temporary:
        temporary.write_text(json_text(document))


def create_json(path: Path, document: Any) -> bool:
    """Write `document` unless `path` exists already; of writers at the same time exactly one succeeds.

    Returns:
        Whether it was written.
    """
    with durable_temporary(path) as temporary, writing(path):
        temporary.write_text(json_text(document))
        make_durable(temporary)
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        fsync(path.parent)
    return True


def json_text(document: Any) -> str:
    """The one form of a JSON file: indented, keys sorted, no NaN."""
    return json.dumps(document, indent=1, sort_keys=True, allow_nan=False) + "\n"


@contextlib.contextmanager
def writing(path: Path, what: str = "") -> Iterator[None]:
    """Turn the operating system's errors about writing `path` into the project's.

    Args:
        path: what is written, or the folder.
        what: its name in the sentence, where the path alone would not say it.

    Raises:
        DiskFullError: there was no room.
        StoreError: it could not be written for another reason.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        subject = f"{what} at {path}" if what else str(path)
        start = f"{what.capitalize()} at {path}" if what else str(path)
        # HDF5 and safetensors report the operating system's error only inside their message.
        if getattr(error, "errno", None) in _NO_ROOM or any(text in str(error) for text in _NO_ROOM_TEXTS):
            raise DiskFullError(
                f"No room on the disk for {subject}: free some space and run again; what was committed before is "
                "intact."
            ) from error
        reason = getattr(error, "strerror", None) or error
        raise StoreError(
            f"{start} cannot be written ({reason}): check that the folder exists and is writable."
        ) from error


def make_durable(path: Path) -> None:
    """Give a finished temporary file the usual permissions and put it on the disk."""
    os.chmod(path, 0o644)
    fsync(path)


def fsync(path: Path) -> None:
    """Put a file, or a folder's list of names, on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
