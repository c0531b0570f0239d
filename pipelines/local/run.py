"""Run a campaign on this machine and show it: the worker process runs the DAG, this one draws, stops and sums up."""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from rich.console import Console

from pipelines.display import Display, Record, failure_sentence, read_records, step_name, was_killed
from pipelines.expected_steps import expected_steps
from pipelines.local.request import DOCKER, SUBPROCESS, LocalRequest
from roboimi.campaign_step import LOG_VARIABLE, LOGS_VARIABLE
from roboimi.errors import StoreUnavailableError
from roboimi.progress import ENVIRONMENT_VARIABLE as PROGRESS_VARIABLE
from roboimi.storage.store import Store, open_store

if TYPE_CHECKING:
    from pipelines.local.docker_engine import Containers

CHECKOUT = Path(__file__).resolve().parents[2]
CLUSTER_ONLY = frozenset({"preflight_gpu"})
SECONDS_BETWEEN_LOOKS = 0.25
SECONDS_TO_COMMIT = 30.0
"""How long a step may take, after an interrupt, to commit its state before it is killed."""


@dataclass(frozen=True)
class Outcome:
    """How a campaign ended.

    Attributes:
        job_id: the campaign's run id.
        exit_code: 0: every step succeeded; 1: one failed; 128 + n: stopped by signal n.
        records: the launch records.
        log: what the runner printed; the steps' own logs lie in the folder `logs` beside it.
        report: `report.html`, or None where there is none.
        unrecorded: steps that left no launch record although nothing said that they failed.
    """

    job_id: str
    exit_code: int
    records: list[Record]
    log: Path
    report: Path | None
    unrecorded: tuple[str, ...] = ()


def campaign_id() -> str:
    """A run id that sorts by time, UTC."""
    return f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(3)}"


def run_local(
    arguments: dict[str, Any],
    *,
    profile: str,
    outputs: Path,
    console: Console,
    job_id: str | None = None,
    runner: str = SUBPROCESS,
) -> Outcome:
    """Run the DAG to its end, or to an interrupt.

    Args:
        arguments: of the pipeline function; `store` among them.
        profile: name of the profile.
        outputs: folder for the log and the artifacts that pass between steps.
        console: where lines and the bar go.
        job_id: the campaign's run id; None: a new one.
        runner: how the steps run, one of `pipelines.local.request.RUNNERS`.

    Raises:
        StoreError: the store cannot be opened.
        EngineError: the steps should run in containers and no Docker engine answers.
    """
    job_id = job_id or campaign_id()
    store = open_store(arguments["store"])
    folder = (outputs / "campaigns" / job_id).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "campaign.log"
    # kfp.local removes its workspace root after every run, so it must be a folder that holds nothing of anybody's.
    scratch = Path(tempfile.mkdtemp(prefix="roboimi-campaign-"))
    try:
        request = LocalRequest(
            profile=profile,
            job_id=job_id,
            arguments=arguments,
            pipeline_root=str(folder / "artifacts"),
            workspace_root=str(scratch / "workspace"),
            owner_pid=os.getpid(),
            runner=runner,
        )
        request.write(folder / "request.json")
        with _containers(request) as containers:
            code = _watch(folder / "request.json", log, scratch, store, job_id, console, containers)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    records = read_records(store, job_id)
    unrecorded = () if code else unrecorded_steps(records, arguments)
    # The records have the last word: a runner can take a step for finished that is not.
    if unrecorded or any(record["status"] != "succeeded" for record in records):
        code = code or 1
    return Outcome(job_id, code, records, log, _report(store, job_id), unrecorded)


def unrecorded_steps(records: Sequence[Record], arguments: Mapping[str, Any]) -> tuple[str, ...]:
    """The steps of a campaign on this machine, given the pipeline's arguments, without a launch record."""
    there = {(record["arm"], record["step"]) for record in records}
    missing = [step for step in expected_steps(arguments) if (step.arm, step.step) not in there]
    return tuple(step_name({"arm": step.arm, "step": step.step}) for step in missing if step.task not in CLUSTER_ONLY)


def failures(outcome: Outcome) -> list[tuple[str, str]]:
    """What went wrong, as a sentence and the log to read: each step that failed, or why there was no step at all."""
    failed = [record for record in outcome.records if record["status"] == "failed" or was_killed(record)]
    if outcome.unrecorded:
        sentences = [f"{step}: it left no launch record, so it did not run to its end" for step in outcome.unrecorded]
        return [(failure_sentence(record), _log(record, outcome)) for record in failed] + [
            (sentence, str(outcome.log)) for sentence in sentences
        ]
    if not failed and outcome.exit_code:
        tail = outcome.log.read_text(errors="replace").strip().splitlines()
        why = tail[-1] if tail else "its log is empty"
        return [(f"the campaign ended outside of its steps: {why}", str(outcome.log))]
    return [(failure_sentence(record), _log(record, outcome)) for record in failed]


def _log(record: Record, outcome: Outcome) -> str:
    return record.get("log", str(outcome.log))


@contextlib.contextmanager
def _containers(request: LocalRequest) -> Iterator["Containers | None"]:
    """The campaign's containers, of which none is left when this is left; None where the steps run without any."""
    if request.runner != DOCKER:
        yield None
        return
    from pipelines.local.docker_engine import Containers

    containers = Containers(request.job_id)
    containers.remove_abandoned()
    try:
        yield containers
    finally:
        containers.remove()


def _watch(
    request: Path,
    log: Path,
    scratch: Path,
    store: Store,
    job_id: str,
    console: Console,
    containers: "Containers | None",
) -> int:
    progress = scratch / "progress"
    progress.mkdir()
    records: list[Record] = []
    with open(log, "ab") as sink, _signals_as_exception():
        worker = _start(request, sink, log, scratch, progress)
        try:
            with Display(console, progress) as display:
                while worker.poll() is None:
                    # A store that is out of reach for a while is the steps' to bear; the display only waits.
                    with contextlib.suppress(StoreUnavailableError):
                        records = read_records(store, job_id)
                        display.show(records)
                    time.sleep(SECONDS_BETWEEN_LOOKS)
                display.show(read_records(store, job_id))
        except _Stopped as stopped:
            # A second interrupt while the step commits means: now.
            with contextlib.suppress(_Stopped):
                console.print("stopping: the running step commits what it has ...", highlight=False)
                _stop(worker, store, job_id, records, containers)
            return 128 + stopped.number
        finally:
            _kill_group(worker)
    return 1 if worker.returncode else 0


def _start(request: Path, sink: Any, log: Path, scratch: Path, progress: Path) -> subprocess.Popen[bytes]:
    temporary = scratch / "tmp"
    temporary.mkdir()
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(CHECKOUT), os.environ.get("PYTHONPATH")])),
        "PYTHONUNBUFFERED": "1",
        # kfp.local leaves one folder with the component's source for every step.
        "TMPDIR": str(temporary),
        LOG_VARIABLE: str(log),
        LOGS_VARIABLE: str(log.parent / "logs"),
        PROGRESS_VARIABLE: str(progress),
    }
    # Its own session: the terminal's Ctrl-C reaches this process alone, which then decides who gets which signal.
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines.local.worker", str(request)],
        stdin=subprocess.DEVNULL,
        stdout=sink,
        stderr=subprocess.STDOUT,
        env=environment,
        start_new_session=True,
    )


def _stop(
    worker: subprocess.Popen[bytes],
    store: Store,
    job_id: str,
    records: list[Record],
    containers: "Containers | None",
) -> None:
    """Let the running step commit and end; the frozen worker starts no further one meanwhile.

    `records` are those that were seen last, for when the store does not answer.
    """

    def belongs(pid: int) -> bool:
        return containers.own(pid) if containers else _belongs(pid, worker.pid)

    os.kill(worker.pid, signal.SIGSTOP)
    with contextlib.suppress(StoreUnavailableError):
        records = read_records(store, job_id)
    running = [record["pid"] for record in records if record["status"] == "running"]
    steps = [pid for pid in running if belongs(pid)]
    for pid in steps:
        # The step's own process only: signals to its helpers would look like their crash while it commits.
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + SECONDS_TO_COMMIT
    while any(belongs(pid) for pid in steps) and time.monotonic() < deadline:
        time.sleep(0.05)


def _kill_group(worker: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()


def _belongs(pid: int, group: int) -> bool:
    """Whether a living process `pid` is in the process group."""
    try:
        # Fields after the command in parentheses: state, parent, process group.
        state, _, of_group = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:3]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX" and int(of_group) == group


class _Stopped(Exception):
    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


@contextlib.contextmanager
def _signals_as_exception() -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise _Stopped(number)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _report(store: Store, job_id: str) -> Path | None:
    if "report.html" not in store.list(f"campaigns/{job_id}"):
        return None
    return store.fetch(f"campaigns/{job_id}", ["report.html"]) / "report.html"
