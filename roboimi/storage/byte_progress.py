"""A progress bar for transfers: counts mebibytes, told of bytes from several threads."""

import threading
from typing import Self

from roboimi.progress import Progress

_MEBIBYTE = 1 << 20


class ByteProgress:
    """A `Counter` of the store's transfers, to be shown: `with ByteProgress("push", total) as count: ...`.

    Args:
        label: what moves.
        total: bytes.
    """

    def __init__(self, label: str, total: int):
        self._label, self._total = f"{label} (MiB)", max(1, total // _MEBIBYTE)
        self._moved, self._lock = 0, threading.Lock()

    def __call__(self, moved: int) -> None:
        """So many more bytes are done."""
        with self._lock:
            self._moved += moved
            self._progress.update(min(self._moved // _MEBIBYTE, self._total))

    def __enter__(self) -> Self:
        self._progress = Progress.start(self._label, total=self._total)
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.close()
