"""Stopping on SIGTERM and SIGINT: at the next step boundary, so that what is saved is whole."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Self

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopNow(BaseException):
    """Raised inside `StopSignal.interruptible`; no `except Exception` on the way may take it for a failure."""


class StopSignal:
    """Notes the first SIGTERM or SIGINT within its block; later ones are ignored, they would cut the save short.

    Signals reach the main thread alone: elsewhere this does nothing and `number` stays None.

    Attributes:
        number: the signal that asked to stop, or None.
    """

    def __init__(self):
        self.number: int | None = None
        self._interruptible = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Within the block a signal raises `StopNow` at once: for long work that leaves nothing half done."""
        self._interruptible = True
        try:
            if self.number is not None:
                raise StopNow
            yield
        finally:
            self._interruptible = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number is None:
            self.number = number
            if self._interruptible:
                raise StopNow
