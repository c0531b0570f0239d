"""Notices when a training stands still: a data source, a device or a driver that hangs says nothing by itself.

The training says what it is about to do and how long that may take. When the time is over, a thread prints where all
threads are and interrupts the training with `HungError`; where that does not help either, because the main thread is
stuck outside of Python, the thread leaves the record and ends the process itself.
"""

import contextlib
import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Self

from roboimi.errors import HungError

DATA_S = 45.0
"""One batch; reading one takes milliseconds, and a cold network disk some seconds."""
UPDATE_S = 1200.0
"""One update; the first one on a GPU loads libraries, and compiles where it is asked to."""
GRACE_S = 10.0
"""What the main thread gets to end by itself once it was interrupted."""
SECONDS_BETWEEN_LOOKS = 0.5
SIGNAL = signal.SIGUSR2


class Watchdog:
    """Watches the main thread within its block; elsewhere it does nothing.

    Args:
        record: called with the error before the process is ended from outside the main thread.
    """

    def __init__(self, record: Callable[[HungError], None] = lambda error: None):
        self._record = record
        self._watched: tuple[str, float, float] | None = None
        self._error: HungError | None = None
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._handler: object = None

    @contextlib.contextmanager
    def expecting(self, what: str, within_s: float) -> Iterator[None]:
        """The block is over within `within_s` seconds; an inner block counts for itself while it lasts.

        Raises:
            HungError: it was not.
        """
        outer = self._watched
        self._watched = (what, time.monotonic() + within_s, within_s)
        try:
            yield
        finally:
            self._watched = outer

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._handler = signal.signal(SIGNAL, self._interrupt)
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._thread is not None:
            self._ended.set()
            self._thread.join()
            signal.signal(SIGNAL, self._handler)

    def _watch(self) -> None:
        while not self._ended.wait(SECONDS_BETWEEN_LOOKS):
            watched = self._watched
            if watched is None or time.monotonic() < watched[1]:
                continue
            what, _, seconds = watched
            faulthandler.dump_traceback(sys.__stderr__, all_threads=True)
            self._error = HungError(
                f"Nothing has moved for {seconds:g} s in {what}: see the stacks above, check the disk, the network and "
                "the device, and run the same command again to go on from the last checkpoint."
            )
            signal.pthread_kill(threading.main_thread().ident, SIGNAL)
            if self._ended.wait(GRACE_S) or self._watched is not watched:
                return
            self._record(self._error)
            print(f"error: {self._error}", file=sys.__stderr__, flush=True)
            os._exit(HungError.exit_code)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._error is not None:
            raise self._error
