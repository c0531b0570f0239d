"""What the operating system says about writing, as one sentence of the project."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from roboimi.errors import DiskFullError, StoreError

_NO_ROOM = tuple(os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))


@contextlib.contextmanager
def writing(what: str, path: Path) -> Iterator[None]:
    """Within the block `what` is written at `path`.

    Raises:
        DiskFullError: there was no room.
        StoreError: it could not be written for another reason.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        # safetensors reports the operating system's error only inside its message.
        if any(reason in str(error) for reason in _NO_ROOM):
            raise DiskFullError(
                f"No room on the disk for {what} at {path}: free some space and run again; what was committed "
                "before is intact."
            ) from error
        raise StoreError(f"{what.capitalize()} at {path} cannot be written ({error}): check the folder.") from error
