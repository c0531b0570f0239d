"""Who may write a training: `trainings/<key>/LEASE.json`, and the epoch that tells writers apart.

The document is compared and swapped; every holder's epoch is higher than the one before. No clock is compared with
another machine's: a challenger watches an unchanged document for one `ttl_s` of its own monotonic clock, unless it sees
the holder's process run. A holder is replaced at once where it gave the lease back, where it is provably dead (same
boot, same process namespace, no such process), where the challenger is its own retry (same claimant), or by force.

The lease only saves work: two writers at a time do no harm, since each checkpoint has a name of its own and LATEST
never goes back to a lower epoch. So a holder that wakes up after its lease was taken finds out, at the latest when it
next announces a checkpoint.
"""

import contextlib
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from roboimi.errors import FencedError, HeldByAnotherError, StoreDamagedError, StoreError
from roboimi.storage.store import Store, Versioned

FILE = "LEASE.json"
SCHEMA = "roboimi.lease/1"
TTL_S = 60.0
"""An unchanged lease of a holder that may be alive is taken after so long."""
RENEWALS_PER_TTL = 5
SECONDS_BETWEEN_LOOKS = 1.0
SECONDS_TO_GIVE_BACK = 5.0
"""A process whose store is gone ends all the same; its lease then expires, or its death is noticed."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Holder:
    """A process that holds a lease.

    Attributes:
        host: its name, for people.
        pid: its number within its process namespace.
        started: when it started, in clock ticks since boot; a number that came to mean another process has another.
        boot: id of the machine's boot.
        namespace: of process numbers; containers of one machine have different ones.
        claimant: what it works for, such as `<run id>/<arm>`; empty: nothing that could be retried.
    """

    host: str
    pid: int
    started: int
    boot: str
    namespace: str
    claimant: str

    @classmethod
    def this_process(cls, claimant: str = "") -> Self:
        """The running process."""
        pid = os.getpid()
        return cls(socket.gethostname(), pid, _started(pid) or 0, _boot(), _namespace(), claimant)

    @property
    def dead(self) -> bool:
        """Whether it certainly runs no more; False where that cannot be known from here."""
        if not self.boot or self.boot != _boot() or self.namespace != _namespace():
            return False
        return _started(self.pid) != self.started

    @property
    def running(self) -> bool:
        """Whether it certainly runs, and is not stopped; False where that cannot be known from here."""
        here = self.boot != "" and self.boot == _boot() and self.namespace == _namespace()
        return here and _started(self.pid) == self.started and not _stopped(self.pid)

    def __str__(self) -> str:
        run = f" for {self.claimant}" if self.claimant else ""
        return f"process {self.pid} on {self.host}{run}"


class Lease:
    """A held lease; as a context manager it is renewed within its block and given back at its end.

    Attributes:
        epoch: higher than that of any holder before.
        abandoned: epoch of the holder before, where that one is known to be dead or to have ended in order.
    """

    def __init__(self, store: Store, training: str, held: Versioned, abandoned: int | None, ttl_s: float):
        self._store, self._training, self._held, self._ttl_s = store, training, held, ttl_s
        self.epoch: int = held.document["epoch"]
        self.abandoned = abandoned
        self._lost: FencedError | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

    def check(self) -> None:
        """See that the lease is still held, as far as is known; asks nobody.

        Raises:
            FencedError: another writer has it.
        """
        if self._lost is not None:
            raise self._lost

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join(SECONDS_TO_GIVE_BACK)

    def _renew(self) -> None:
        while not self._ended.wait(self._ttl_s / RENEWALS_PER_TTL):
            try:
                self._swap(self._held.document | {"renewals": self._held.document["renewals"] + 1})
            except FencedError as error:
                self._lost = error
                return
            except StoreError as error:
                # Without a store nobody can take the lease either; what counts is decided when LATEST is swapped.
                log.warning("the lease of %s could not be renewed: %s", self._training, error)
        self._give_back()

    def _give_back(self) -> None:
        # A document without a holder: object stores do not delete on a condition.
        try:
            self._swap(self._held.document | {"holder": None})
        except (FencedError, StoreError) as error:
            log.warning("the lease of %s could not be given back: %s", self._training, error)

    def _swap(self, document: dict[str, Any]) -> None:
        """Replace the held document.

        Raises:
            FencedError: it is not this holder's any more.
        """
        key = f"{self._training}/{FILE}"
        while (swapped := self._store.replace(key, document, self._held.version)) is None:
            found = self._store.read_versioned(key)
            if found is None or found.document.get("nonce") != document["nonce"]:
                epoch = _epoch(found)
                raise FencedError(
                    f"The lease of {self._training} in {self._store.uri} was taken by another writer (epoch {epoch}, "
                    f"this one has {self.epoch}): nothing to do here, that one goes on."
                )
            # The answer to an earlier swap was lost, and what is there is our own.
            self._held = found
        self._held = swapped


def acquire(
    store: Store,
    training: str,
    *,
    claimant: str = "",
    when_held: str = "wait",
    above: int = 0,
    finished: Callable[[], bool] = lambda: False,
    waiting: Callable[[str], None] = lambda sentence: None,
    ttl_s: float = TTL_S,
) -> Lease | None:
    """Take the lease of a training.

    Args:
        store: where the training lives.
        training: its prefix.
        claimant: what the caller works for; a holder with the same claimant is the caller's own earlier attempt.
        when_held: `wait` until the holder is finished or gone, `fail`, or `supersede` it.
        above: the new epoch is higher than this one, too.
        finished: whether the training was finished meanwhile; asked while waiting.
        waiting: gets a sentence that says who holds it.
        ttl_s: how long a holder may leave its lease unchanged.

    Returns:
        The lease, or None where the training was finished while waiting.

    Raises:
        HeldByAnotherError: another holder may be alive, and `when_held` is `fail`.
        StoreUnavailableError: the store does not answer.
    """
    me = Holder.this_process(claimant)
    key = f"{training}/{FILE}"
    watched: Versioned | None = None
    since = time.monotonic()
    while not finished():
        found = _read(store, key)
        holder = _holder(found)
        if watched is None or found is None or watched.version != found.version:
            watched, since = found, time.monotonic()
        # A process that is seen to run keeps its lease, also where the machine is too busy for it to renew in time.
        silent = holder is not None and not holder.running
        expired = silent and time.monotonic() - since >= found.document.get("ttl_s", ttl_s)
        own = silent and holder.claimant != "" and holder.claimant == claimant
        if holder is None or holder.dead or own or expired or when_held == "supersede":
            before = _epoch(found)
            document = {
                "schema": SCHEMA,
                "epoch": max(before, above) + 1,
                "renewals": 0,
                "ttl_s": ttl_s,
                "nonce": secrets.token_hex(8),
                "holder": asdict(me),
            }
            held = store.replace(key, document, found.version) if found else store.create(key, document)
            if held is None:
                held = _if_ours(_read(store, key), document)
            if held is not None:
                if holder is not None:
                    log.warning("%s takes %s over from %s", me, training, holder)
                return Lease(store, training, held, before if holder is None or holder.dead else None, ttl_s)
            continue
        sentence = f"{training} is already being trained by {holder}"
        if when_held == "fail":
            raise HeldByAnotherError(
                f"{sentence}: wait for it to finish, stop it, or take it over with train.when_held=supersede."
            )
        waiting(sentence)
        time.sleep(min(SECONDS_BETWEEN_LOOKS, ttl_s / RENEWALS_PER_TTL))
    return None


def read_holder(store: Store, training: str) -> Holder | None:
    """Who holds the lease of a training according to its document, alive or not."""
    return _holder(_read(store, f"{training}/{FILE}"))


def _read(store: Store, key: str) -> Versioned | None:
    try:
        return store.read_versioned(key)
    except StoreDamagedError as error:
        # Made anew, with an epoch above all that LATEST has seen.
        log.warning("%s", error)
        store.write_json(key, {"schema": SCHEMA, "epoch": 0, "holder": None})
        return store.read_versioned(key)


def _holder(found: Versioned | None) -> Holder | None:
    document = found.document.get("holder") if found and isinstance(found.document, dict) else None
    with contextlib.suppress(TypeError):
        return Holder(**document)
    return None


def _epoch(found: Versioned | None) -> int:
    epoch = found.document.get("epoch") if found and isinstance(found.document, dict) else 0
    return epoch if isinstance(epoch, int) else 0


def _if_ours(found: Versioned | None, document: dict[str, Any]) -> Versioned | None:
    """A refusal after a lost answer: the document is there, and it is ours."""
    return found if found and found.document == document else None


def _started(pid: int) -> int | None:
    """When process `pid` started, in clock ticks since boot; None where there is none, or only its zombie."""
    fields = _status(pid)
    return int(fields[19]) if fields and fields[0] not in {"Z", "X"} else None


def _stopped(pid: int) -> bool:
    """Whether process `pid` was stopped by a signal or a debugger."""
    return _status(pid)[:1] in (["T"], ["t"])


def _status(pid: int) -> list[str]:
    """The fields of /proc/<pid>/stat after the name, the state first; empty where there is no such process."""
    try:
        # The name, in parentheses, may hold anything; what follows is fixed.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except FileNotFoundError:  # no Linux: nothing can be proven, a lease has to expire
        return ""


def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except FileNotFoundError:
        return ""
