"""Folders that are either whole or not there: filled beside their place, then renamed into it."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from roboimi.errors import ConfigError
from roboimi.storage.atomic import TEMPORARY_PREFIX, fsync, writing


@contextlib.contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """Give an empty folder to fill; it becomes `out` when the block ends well, and vanishes when it does not.

    Args:
        out: a path that is free, or an empty folder.

    Raises:
        ConfigError: there is something at `out`.
        DiskFullError, StoreError: the folder cannot be made.
    """
    out = Path(out).expanduser().absolute()
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ConfigError(f"{out} is there already: name a folder that is not, nothing is ever written over.")
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f"{TEMPORARY_PREFIX}{out.name}-", dir=out.parent))
    try:
        yield temporary
        with writing(out):
            os.chmod(temporary, 0o755)
            os.rename(temporary, out)
            fsync(out.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
