"""What every step of a campaign does around its work: record, stop when told to, fail in one sentence.

A component body is `with campaign_step(...) as step:` around calls of the library. On entering, the launch record says
`running`; on leaving, how it ended. A `RoboimiError` becomes its one sentence and a non-zero exit code, which is how
the orchestrator sees a failed step.
"""

import contextlib
import json
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from roboimi.errors import DataError, Interrupted, RoboimiError
from roboimi.storage.atomic import write_json_atomically
from roboimi.storage.launch_record import CAMPAIGN, fail, launch_record, record_key
from roboimi.storage.store import Store, open_store
from roboimi.vla.models.staged_weights import STORE_VARIABLE

PARENT_VARIABLE = "ROBOIMI_PARENT_PID"
"""Environment variable: the process whose death ends this step (a local campaign's worker)."""

JOB_VARIABLE = "KFP_RUN_ID"
"""Environment variable: the run id, for steps that do not take it as an argument."""

LOGS_VARIABLE = "ROBOIMI_LOGS"
"""Environment variable: the folder in which every step keeps a log of its own (a local campaign's)."""

LOG_VARIABLE = "ROBOIMI_LOG"
"""Environment variable: where this process's output goes, for its launch record."""

SECONDS_TO_COMMIT = 30.0
"""How long an orphaned step may take to commit its state before it is killed."""


@dataclass
class Step:
    """A running step.

    Attributes:
        store: the opened store.
        record: the launch record; what is added to it is in its final version. `record["result"]` is the short result
            that a person reads, such as `2000 steps, loss 0.031`.
    """

    store: Store
    record: dict[str, Any]

    def note(self, **fields: Any) -> None:
        """Add to the record and write it now: what a killed step must have left behind."""
        self.record |= fields
        key = record_key(self.record["job_id"], self.record["arm"], self.record["step"])
        self.store.write_json(key, self.record)

    def add(self, name: str, value: Any) -> None:
        """Append to a list in the record, and write it now."""
        self.note(**{name: [*self.record.get(name, []), value]})


@contextlib.contextmanager
def campaign_step(store: str, job_id: str, step: str, arm: str = CAMPAIGN, **fields: Any) -> Iterator[Step]:
    """Run the body as one step of a campaign.

    Args:
        store: URI of the store.
        job_id: the campaign's run id; empty: the one that the environment variable `KFP_RUN_ID` holds.
        step: the step's name in the records.
        arm: the experiment's name, or `CAMPAIGN`.
        **fields: what the launch record holds from the start.

    Raises:
        SystemExit: the body raised a `RoboimiError`, whose sentence is printed; the code is the error's.
    """
    end_with_parent()
    write_own_log(f"{arm}-{step}")
    try:
        with _terminated_as_exception():
            opened = open_store(store)
            job = job_id or os.environ.get(JOB_VARIABLE, "")
            with (
                _report_of(opened, job, arm),
                _encoders_in(opened),
                launch_record(opened, job, arm, step, **fields) as record,
            ):
                yield Step(store=opened, record=record)
    except RoboimiError as error:
        fail(error)


@contextlib.contextmanager
def _report_of(store: Store, job_id: str, arm: str) -> Iterator[None]:
    """Bring the campaign's report up to date at the end of an arm's step, where there is one already: in a retry."""
    try:
        yield
    finally:
        if arm != CAMPAIGN and store.read_json(f"campaigns/{job_id}/report.json") is not None:
            from roboimi.reports.refresh import refresh_report

            refresh_report(store, job_id)


@contextlib.contextmanager
def _encoders_in(store: Store) -> Iterator[None]:
    """Let staged encoder weights be looked for in this store, here and in child processes, unless another is named."""
    if os.environ.get(STORE_VARIABLE):
        yield
        return
    os.environ[STORE_VARIABLE] = store.uri
    try:
        yield
    finally:
        del os.environ[STORE_VARIABLE]


def end_with_parent() -> None:
    """Make sure that this process does not outlive the one that `ROBOIMI_PARENT_PID` names.

    A step is a grandchild of the process that the user started, with a shell in between, so the kernel's parent-death
    signal would not reach it. When the process goes, however it went, this one gets SIGTERM (its chance to commit),
    and SIGKILL when it is still there after `SECONDS_TO_COMMIT`.
    """
    parent = os.environ.get(PARENT_VARIABLE)
    if not parent:
        return
    try:
        handle = os.pidfd_open(int(parent))
    except ProcessLookupError:
        print(f"error: The process {parent} that runs this campaign is gone.", file=sys.stderr, flush=True)
        sys.exit(1)
    threading.Thread(target=_end_after, args=(handle,), name="end-with-parent", daemon=True).start()


def write_own_log(name: str) -> None:
    """From here on, write this process's output into its own file of the folder that `ROBOIMI_LOGS` names, if any.

    Arms run side by side; in one file their lines would be mixed. What libraries in C print goes there too.
    """
    folder = os.environ.get(LOGS_VARIABLE)
    if not folder:
        return
    path = Path(folder) / f"{name}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    os.environ[LOG_VARIABLE] = str(path)
    sys.stdout.flush()
    sys.stderr.flush()
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)


def _end_after(handle: int) -> None:
    # A pidfd becomes readable when its process ends; unlike the number, it cannot come to mean another process.
    poll = select.poll()
    poll.register(handle, select.POLLIN)
    poll.poll()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(SECONDS_TO_COMMIT)
    os.kill(os.getpid(), signal.SIGKILL)


@contextlib.contextmanager
def _terminated_as_exception() -> Iterator[None]:
    """Turn SIGTERM and SIGINT into `Interrupted`, so that the record is written and temporary files go away.

    A training puts its own handler in place of this one while it runs: it commits a checkpoint first.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _raise_interrupted) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _raise_interrupted(number: int, frame: FrameType | None) -> None:
    # Once is enough: a second signal must not interrupt the writing of the record.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    name = signal.Signals(number).name
    raise Interrupted(f"Stopped by {name}; run the same command again to go on.", number)


def write_pointer(path: str | Path, uri: str, digest: str, **fields: Any) -> None:
    """Write a pointer: the small JSON document that passes between steps in place of the bytes it stands for.

    Args:
        path: the artifact's file.
        uri: where the bytes are: a path, or a prefix in the store.
        digest: content digest or key of what lies there.
        **fields: small facts that the next step needs.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_json_atomically(target, {"uri": uri, "digest": digest, **fields})


def read_pointer(path: str | Path) -> dict[str, Any]:
    """Read what `write_pointer` wrote.

    Raises:
        DataError: the file is missing or is not a pointer.
    """
    try:
        pointer = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"Pointer {path} cannot be read ({error}): run the step that writes it again.") from error
    if not isinstance(pointer, dict) or not {"uri", "digest"} <= set(pointer):
        raise DataError(f"Pointer {path} lacks uri or digest: run the step that writes it again.")
    return pointer
