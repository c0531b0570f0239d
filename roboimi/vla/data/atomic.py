"""Files that are either whole or not there: written beside their place, made durable, then renamed over it."""

import contextlib
import errno
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from roboimi.errors import DiskFullError, StoreError

TEMPORARY_PREFIX = ".writing-"
"""How the names of unfinished files begin; what a killed writer leaves behind is found by it."""

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary path to write to; it becomes `path` when the block ends well, and vanishes when it does not.

    Raises:
        DiskFullError: there is no room for the file.
        StoreError: the folder cannot be written.
    """
    with _one_sentence(path):
        handle, name = tempfile.mkstemp(prefix=f"{TEMPORARY_PREFIX}{path.name}-", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        with _one_sentence(path):
            yield temporary
            os.chmod(temporary, 0o644)
            _fsync(temporary)
            os.replace(temporary, path)
            _fsync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_json_atomically(path: Path, document: Any) -> None:
    """Write `document` as indented JSON with sorted keys; see `atomic_path` for the errors."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(document, indent=1, sort_keys=True, allow_nan=False) + "\n")


@contextlib.contextmanager
def _one_sentence(path: Path) -> Iterator[None]:
    """Turn the operating system's errors about writing `path` into the project's."""
    try:
        yield
    except OSError as error:
        # HDF5 reports the operating system's error only inside its message.
        if error.errno in _NO_ROOM or "No space left" in str(error) or "Disk quota" in str(error):
            raise DiskFullError(f"No room on the disk for {path}: free some space and run again.") from error
        raise StoreError(
            f"{path} cannot be written ({error.strerror or error}): check that the folder exists and is writable."
        ) from error


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
