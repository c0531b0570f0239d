"""One writer at a time in a training's folder.

The lock is the kernel's (`flock`), so it ends with its holder, also on kill -9, and two takers cannot both win. The
file's content only tells who holds it, and covers what `flock` does not reach: a holder on another host that shares
the folder, who counts as alive while its heartbeat is fresh.
"""

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from roboimi.errors import HeldByAnotherError

FILE = "WRITER.lock"
HEARTBEAT_S = 15.0
EXPIRES_AFTER_S = 90.0
"""A holder on another host is taken for dead after this long without a heartbeat; several missed beats."""


@contextlib.contextmanager
def single_writer(folder: Path, what: str) -> Iterator[None]:
    """Hold the lock of `folder` within the block.

    Args:
        folder: of the training.
        what: its name in the error's sentence.

    Raises:
        HeldByAnotherError: a live process holds it; the sentence says which.
    """
    handle = os.open(folder / FILE, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        holder = _holder(handle)
        if not _try_lock(handle) or _alive_elsewhere(holder):
            raise HeldByAnotherError(
                f"{what} is already being trained by {_describe(holder)}: wait for it to finish, or stop it first."
            )
        ended = threading.Event()
        beat = threading.Thread(target=_beat, args=(handle, ended), name="lock-heartbeat", daemon=True)
        _write(handle)
        beat.start()
        try:
            yield
        finally:
            ended.set()
            beat.join()
            os.ftruncate(handle, 0)
    finally:
        os.close(handle)


def _try_lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _beat(handle: int, ended: threading.Event) -> None:
    while not ended.wait(HEARTBEAT_S):
        _write(handle)


def _write(handle: int) -> None:
    content = json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "heartbeat": time.time()}).encode()
    # Padded to one length and written in one call: a reader never sees half of it.
    os.pwrite(handle, content.ljust(256), 0)


def _holder(handle: int) -> dict[str, Any]:
    """Who wrote the file last; empty when it was left in order, or by a writer that died while writing it."""
    try:
        return json.loads(os.pread(handle, 4096, 0))
    except ValueError:
        return {}


def _alive_elsewhere(holder: dict[str, Any]) -> bool:
    if not holder or holder["host"] == socket.gethostname():
        return False
    return time.time() - holder["heartbeat"] < EXPIRES_AFTER_S


def _describe(holder: dict[str, Any]) -> str:
    if not holder:
        return "another process"
    age = max(0.0, time.time() - holder["heartbeat"])
    return f"process {holder['pid']} on {holder['host']} (heartbeat {age:.0f} s ago)"
