"""Trainings in processes of their own that are killed, stopped and disturbed.

A trial is a fork of this process, which has torch loaded and has never trained: it pays no import, and no state of one
trial reaches another. What a trial says comes through a pipe, so that it is known up to the moment of a SIGKILL.
"""

import itertools
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from roboimi.errors import RoboimiError
from roboimi.storage.store import Store, open_store
from roboimi.vla.config import TrainRun
from roboimi.vla.train_vla import train
from roboimi.vla.training.metrics import TIMINGS
from roboimi.vla.training.reader import CheckpointReader
from tests.tiny_training import TINY_TRAINING

OVERRIDES = (
    "backbone=privileged_state",
    *TINY_TRAINING,
    "train.checkpoint_interval_s=0",
)

CHANGES = {
    "serialize_file",
    "open",
    "mkdir",
    "fsync",
    "link",
    "replace",
    "unlink",
    "rmdir",
    "write",
    "chmod",
    "sendall",
}
"""Calls into C that change a file or send bytes to a server."""

STAGES = ("spool", "commit", "announce", "collect", "put", "recover", "discard")
"""Functions of the checkpoint protocol; a kill is counted under the innermost one that it fell into."""


class Steps:
    """A progress that hands on each step, and knows when it was."""

    def __init__(self, see: Callable[[int], None] = lambda step: None):
        self.times: list[float] = []
        self._see = see

    def update(self, done: int, note: str = "") -> None:
        self.times.append(time.monotonic())
        self._see(done)


@dataclass
class Child:
    """A forked trial.

    Attributes:
        pid: its process.
        said: what it reported so far, in order.
    """

    pid: int
    _reader: Any
    said: list[dict] = field(default_factory=list)

    def next(self, name: str) -> Any:
        """The next report of that name; None where the process ended without one."""
        for line in self._reader:
            self.said.append(json.loads(line))
            if name in self.said[-1]:
                return self.said[-1][name]
        return None

    def end(self) -> int:
        """Wait for its end: the exit code, or minus the signal's number."""
        self.next("nothing has this name")
        self._reader.close()
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def last(self, name: str, default: Any = None) -> Any:
        """The newest report of that name."""
        return next((line[name] for line in reversed(self.said) if name in line), default)

    def send(self, number: int) -> None:
        os.kill(self.pid, number)


def fork(work: Callable[[Callable[[dict], None]], None], log: Path | None = None) -> Child:
    """Run `work(report)` in a forked process; its exit code is that of the `RoboimiError` it ends with, else 99."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writer)
        return Child(pid, os.fdopen(reader))
    os.close(reader)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    output = os.open(log or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)

    def report(line: dict) -> None:
        os.write(writer, json.dumps(line).encode() + b"\n")

    try:
        work(report)
        code = 0
    except RoboimiError as error:
        report({"error": str(error), "failure_class": error.failure_class})
        code = error.exit_code
    except BaseException as error:
        report({"crash": f"{type(error).__name__}: {error}"})
        code = 99
    os._exit(code)


def fork_training(
    run: TrainRun, uri: str, *, before: Callable | None = None, log: Path | None = None, **options
) -> Child:
    """Train in a forked process; `before(report)` runs there first and may give a function that sees each step."""

    def work(report: Callable[[dict], None]) -> None:
        see = before(report) if before else None

        def tell(step: int) -> None:
            report({"step": step})
            if see:
                see(step)

        result = train(run, store=open_store(uri), progress=Steps(tell), **options)
        report({"result": result.to_document()})

    return fork(work, log)


def die_at(number: int, report: Callable[[dict], None], changes_only: bool = True) -> Iterator[int]:
    """Kill this process before the `number`-th call inside of the protocol that changes something, in any thread.

    With `changes_only` False every call of any function counts. Gives the counter.
    """
    counter = itertools.count(1)

    def count(frame, event, argument):
        if changes_only:
            if event != "c_call" or argument.__name__ not in CHANGES or stage_of(frame) == "training":
                return
        elif event not in ("call", "c_call"):
            return
        if next(counter) == number:
            report({"killed_in": stage_of(frame)})
            os.kill(os.getpid(), signal.SIGKILL)

    threading.setprofile(count)
    sys.setprofile(count)
    return counter


def stage_of(frame) -> str:
    """The innermost function of the protocol on the stack of `frame`."""
    while frame is not None:
        if frame.f_code.co_name in STAGES and "roboimi" in frame.f_code.co_filename:
            return frame.f_code.co_name
        frame = frame.f_back
    return "training"


def the_training(store: Store) -> str:
    """The prefix of the one training in a store."""
    (key,) = store.list("trainings")
    return f"trainings/{key}"


def final_state(store: Store, result: dict) -> dict:
    """What has to be equal for equal trainings: every tensor's bytes, the counters, the curves."""
    name = result["checkpoint"].rpartition("/")[2]
    reader = CheckpointReader(store, result["training"])
    files = reader.manifest(name)["files"]
    snapshot = reader.read(name)
    curves = [json.loads(line) for line in snapshot.metrics.splitlines()]
    return {
        "tensors": {file: entry["sha256"] for file, entry in files.items() if file.endswith(".safetensors")},
        "state": {key: value for key, value in snapshot.state.items() if key != "seconds"},
        "curves": [
            {key: value for key, value in line.items() if key not in TIMINGS}
            for line in curves
            if line["kind"] != "alarm"
        ],
        "loss": (result["loss"], result["validation_loss"]),
    }
