"""Checkpoints in the background: the training takes a snapshot and goes on, one thread brings it into the store.

At most two snapshots are on their way: the one being written or sent, and one that waits; a newer one takes the place
of the waiting one. While the store does not answer, the thread tries again and again; what it holds is spooled on this
machine, so that a killed training finds it there. A full disk costs this checkpoint and not the training: the next one
is tried again. Any other failure ends the training at its next step.
"""

import logging
import random
import threading
import time
from collections.abc import Callable

from roboimi.errors import DiskFullError, StoreError, StoreUnavailableError
from roboimi.vla.training.checkpoint import Checkpoints, Spooled
from roboimi.vla.training.snapshot import HostBuffers, Snapshot

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 10.0
"""Between two attempts to reach the store; a commit follows its return within that and the time that sending takes."""
SHARE_OF_THREAD = 0.5
"""Of the time to finish: after it, a snapshot that still waits is spooled by whoever waits for it."""

log = logging.getLogger(__name__)
_chance = random.SystemRandom()
"""Not the global generator: its state is part of what is saved."""


class CheckpointWriter:
    """Writes the snapshots of one training, one after the other.

    Args:
        checkpoints: of the training.
        after_commit: called in the thread after each commit, to bring other files into the store too.
        saved: step and name of the checkpoint that is committed already, if any.

    Attributes:
        buffers: memory for the next snapshot.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        after_commit: Callable[[], None] = lambda: None,
        saved: tuple[int, str] | None = None,
    ):
        self._checkpoints, self._after_commit = checkpoints, after_commit
        self.buffers = HostBuffers()
        self._changed = threading.Condition()
        self._waiting: Snapshot | None = None
        self._spooled: list[Spooled] = []
        self._writing = False
        self._committed = saved
        self._submitted = saved[0] if saved else None
        self._failure: BaseException | None = None
        self._no_room: DiskFullError | None = None
        self._alarms: list[str] = []
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="checkpoint-writer", daemon=True)
        self._thread.start()

    @property
    def submitted(self) -> int | None:
        """Step of the newest snapshot that was handed over."""
        return self._submitted

    @property
    def committed(self) -> tuple[int, str] | None:
        """Step and name of the newest committed checkpoint."""
        with self._changed:
            return self._committed

    @property
    def spooled(self) -> int | None:
        """Step of a checkpoint that is whole on this machine and not yet in the store."""
        with self._changed:
            return self._spooled[-1].step if self._spooled else None

    def submit(self, snapshot: Snapshot) -> None:
        """Hand a snapshot over; returns at once."""
        with self._changed:
            if self._waiting is not None:
                self.buffers.give_back(self._waiting)
            self._waiting, self._submitted = snapshot, snapshot.step
            self._changed.notify_all()

    def check(self) -> None:
        """Raise what ended the thread, if anything did.

        Raises:
            FencedError: another writer has taken over.
            StoreError: the store refuses.
        """
        with self._changed:
            if self._failure is not None:
                raise self._failure

    def take_alarms(self) -> list[str]:
        """What people should know and did not hear yet: checkpoints that could not be written, a store that is gone."""
        with self._changed:
            alarms, self._alarms = self._alarms, []
        return alarms

    def wait_until_safe(self, timeout_s: float) -> None:
        """Wait until what was handed over would survive this process on this machine: spooled or committed."""
        self._wait(lambda: self._waiting is None and not self._writing, timeout_s)

    def finish(self, timeout_s: float, give_up: Callable[[], bool] = lambda: False) -> str | None:
        """Wait until all that was handed over is committed, and end the thread.

        Args:
            timeout_s: at most so long.
            give_up: asked while waiting.

        Returns:
            The name of the newest checkpoint; None where it did not come into the store in time, see `spooled`.

        Raises:
            DiskFullError: no room for the last checkpoint.
            RoboimiError: as in `check`.
        """
        until = time.monotonic() + timeout_s
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._wait(lambda: not self._thread.is_alive(), SHARE_OF_THREAD * timeout_s, give_up)
        # The thread may be busy with the network for long; what waits in memory becomes safe in any case.
        self._spool_waiting()
        self._wait(lambda: not self._thread.is_alive(), until - time.monotonic(), give_up)
        self.check()
        with self._changed:
            if self._committed and self._committed[0] == self._submitted:
                return self._committed[1]
            if self._no_room is not None and not self._spooled:
                raise self._no_room
        return None

    def _wait(self, done: Callable[[], bool], timeout_s: float, give_up: Callable[[], bool] = lambda: False) -> None:
        until = time.monotonic() + timeout_s
        with self._changed:
            while not done() and not give_up() and (left := until - time.monotonic()) > 0:
                # Short turns: a signal that arrives meanwhile is seen, and so is the end of the thread.
                self._changed.wait(min(left, 0.1))

    def _run(self) -> None:
        pause = FIRST_PAUSE_S
        while self._has_work():
            try:
                self._spool_waiting()
                self._bring_into_store()
                pause = FIRST_PAUSE_S
            except StoreUnavailableError as error:
                if pause == FIRST_PAUSE_S:
                    self._alarm(f"the store does not answer, checkpoints wait on this machine: {error}")
                # Spread, so that many trainings do not come back at the same moment.
                self._rest(pause * _chance.uniform(0.7, 1.0))
                pause = min(2 * pause, LONGEST_PAUSE_S)
            except DiskFullError as error:
                self._no_room = error
                self._alarm(f"a checkpoint was not written, training goes on: {error}")
            except BaseException as error:  # handed to the training's thread, which raises it
                with self._changed:
                    self._failure = error
                    self._changed.notify_all()
                return

    def _has_work(self) -> bool:
        with self._changed:
            self._changed.notify_all()
            while self._waiting is None and not self._spooled:
                if self._closing:
                    return False
                self._changed.wait()
            return True

    def _spool_waiting(self) -> None:
        with self._changed:
            snapshot, self._waiting = self._waiting, None
            self._writing = snapshot is not None
        if snapshot is None:
            return
        try:
            spooled = self._checkpoints.spool(snapshot)
            with self._changed:
                self._spooled.append(spooled)
        finally:
            with self._changed:
                self._writing = False
                self.buffers.give_back(snapshot)
                self._changed.notify_all()

    def _bring_into_store(self) -> None:
        with self._changed:
            if not self._spooled:
                return
            spooled, older = self._spooled[-1], self._spooled[:-1]
        for replaced in older:
            self._checkpoints.discard(replaced)
            self._done(replaced)
        try:
            self._checkpoints.commit(spooled)
            with self._changed:
                self._committed = (spooled.step, spooled.name)
            self._checkpoints.announce(spooled)
        except DiskFullError:
            self._done(spooled)
            raise
        self._done(spooled)
        self._no_room = None
        try:
            self._after_commit()
            self._checkpoints.collect()
        except StoreError as error:
            # The checkpoint is safe; what was left undone is done after the next one.
            self._alarm(f"after checkpoint {spooled.name}: {error}")

    def _rest(self, seconds: float) -> None:
        with self._changed:
            was_closing = self._closing
            self._changed.wait_for(lambda: self._closing and not was_closing, timeout=seconds)

    def _done(self, spooled: Spooled) -> None:
        with self._changed:
            self._spooled.remove(spooled)
            self._changed.notify_all()

    def _alarm(self, sentence: str) -> None:
        log.warning("%s", sentence)
        with self._changed:
            self._alarms.append(sentence)
