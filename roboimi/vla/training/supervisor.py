"""Starts a training in a process of its own, and again when that crashes: what a pod can do by itself.

An orchestrator may retry a failed pod, or not (the stock settings of Kubeflow Pipelines retry no failure of a program).
So a training that was killed, that hung, or whose store was away goes on from its last commit right here, as long as
that gets it further. What running again cannot help ends at once.

The process is `python -m roboimi.vla.training.supervisor REQUEST.json`; it leaves its answer beside the request.
"""

import dataclasses
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from roboimi.campaign_step import PARENT_VARIABLE, end_with_parent
from roboimi.errors import Interrupted, RoboimiError
from roboimi.storage.atomic import write_json_atomically
from roboimi.storage.launch_record import failure_fields
from roboimi.storage.store import Store, open_store
from roboimi.vla.config import TrainRun
from roboimi.vla.training.failures import error_class
from roboimi.vla.training.latest import LATEST
from roboimi.vla.training.records import TrainResult

SECONDS_TO_COMMIT = 30.0
"""How long the training may take, after a signal to this process, to commit its state."""

log = logging.getLogger(__name__)


class CrashedError(RoboimiError):
    """A training's process ended without a word, more often than the budget allows."""

    failure_class = "crash"
    retryable = True


@dataclass(frozen=True)
class Request:
    """What the training's process is told.

    Attributes:
        overrides: Hydra overrides.
        dataset: reference of the dataset.
        encoder: name of the vision tower.
        store: URI of the store.
        claimant: see `roboimi.vla.train_vla.train`.
    """

    overrides: list[str]
    dataset: str
    encoder: str
    store: str
    claimant: str

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read what `supervise` wrote."""
        return cls(**json.loads(path.read_text()))


def supervise(
    request: Request,
    store: Store,
    training: str,
    *,
    restarts: int,
    first_pause_s: float = 2.0,
    on_restart: Callable[[str], None] = lambda reason: None,
) -> TrainResult:
    """Train, in a process that is started again where that can help.

    Args:
        request: what to train.
        store: the request's store, opened.
        training: prefix of the training in the store; its newest commit tells whether an attempt got further.
        restarts: how many attempts in a row may fail without a new commit before this gives up; 0: none again.
        first_pause_s: before the first of these; each further one waits twice as long, up to a minute.
        on_restart: gets the reason of each.

    Raises:
        RoboimiError: as the training's own, where running again cannot help or the budget is used up.
        Interrupted: this process, or the training's, was told to stop; the training has committed its state.
    """
    again, in_row, reached = 0, 0, _committed_step(store, training)
    while True:
        ended = _run_once(request)
        if isinstance(ended, TrainResult):
            return ended
        step = _committed_step(store, training)
        in_row = 1 if step > reached else in_row + 1
        reached = max(step, reached)
        if isinstance(ended, Interrupted) or not ended.retryable or in_row > restarts:
            raise ended
        again += 1
        log.warning("%s; attempt %d goes on from step %d", ended, again + 1, reached)
        on_restart(str(ended))
        time.sleep(min(60.0, first_pause_s * 2 ** (in_row - 1)))


def _committed_step(store: Store, training: str) -> int:
    return int((store.read_json(f"{training}/{LATEST}") or {}).get("step", 0))


def _run_once(request: Request) -> TrainResult | RoboimiError:
    """One attempt: its result, or how it failed."""
    with tempfile.TemporaryDirectory(prefix="roboimi-training-") as folder:
        path = Path(folder) / "request.json"
        path.write_text(json.dumps(dataclasses.asdict(request)))
        process = subprocess.Popen(
            [sys.executable, "-m", "roboimi.vla.training.supervisor", str(path)],
            stdin=subprocess.DEVNULL,
            env=os.environ | {PARENT_VARIABLE: str(os.getpid())},
            start_new_session=True,  # a terminal's Ctrl-C comes here alone, and is handed on once
        )
        try:
            code = process.wait()
        except BaseException:
            _stop(process)
            raise
        return _ended(_answer_path(path), code)


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(SECONDS_TO_COMMIT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _ended(path: Path, code: int) -> TrainResult | RoboimiError:
    if not path.exists():
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return CrashedError(f"The training's process {how} without a word (out of memory?): see the log above.")
    answer = json.loads(path.read_text())
    if "result" in answer:
        return TrainResult(**answer["result"])
    failure = answer["failure"]
    if failure["failure_class"] == Interrupted.failure_class:
        return Interrupted(failure["reason"], signal.SIGTERM)
    error = error_class(failure["failure_class"])(failure["reason"])
    error.retryable = failure["retryable"]
    return error


def _answer_path(request: Path) -> Path:
    return request.with_name("answer.json")


def main() -> None:
    """The training's process: train what the request says, leave the result or the failure beside it."""
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    path = Path(sys.argv[1])
    end_with_parent()
    code = 0
    try:
        answer: dict[str, Any] = {"result": dataclasses.asdict(_train(Request.read(path)))}
    except RoboimiError as error:
        answer, code = {"failure": failure_fields(error)}, error.exit_code
        print(f"error: {error}", file=sys.stderr)
    write_json_atomically(_answer_path(path), answer)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # a thread that waits for a store that is gone must not keep the process


def _train(request: Request) -> TrainResult:
    from roboimi.vla.train_vla import train

    run = TrainRun.from_overrides(list(request.overrides), dataset=request.dataset, encoder=request.encoder)
    return train(run, store=open_store(request.store), claimant=request.claimant)


if __name__ == "__main__":
    main()
