"""Launch records: who ran which step of a campaign, where, for how long, and how it ended.

A record is written when a step starts and again when it ends, under `campaigns/<job id>/<arm>/<step>.json`. A record
whose status is still `running` after its process is gone tells that the process was killed.
"""

import contextlib
import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from roboimi.errors import RoboimiError
from roboimi.storage.store import Store

CAMPAIGN = "campaign"
"""The arm name of the steps that belong to no arm."""


def record_key(job_id: str, arm: str, step: str) -> str:
    """Where the record of one step lies in the store."""
    return f"campaigns/{job_id}/{arm}/{step}.json"


@contextlib.contextmanager
def launch_record(store: Store, job_id: str, arm: str, step: str, **fields: Any) -> Iterator[dict[str, Any]]:
    """Keep the record of one step: written on entering and on leaving, also when the step fails.

    Args:
        store: where the campaign's records live.
        job_id: the campaign's run id.
        arm: the experiment's name, or `CAMPAIGN`.
        step: the step's name, as in the pipeline.
        **fields: what is known at the start (dataset digest, config, ...).

    Yields:
        The record; what the step adds to it is in the final version.
    """
    key = record_key(job_id, arm, step)
    record: dict[str, Any] = {
        "job_id": job_id,
        "arm": arm,
        "step": step,
        "status": "running",
        **launch_facts(),
        **fields,
    }
    started = time.monotonic()
    store.write_json(key, record)
    try:
        yield record
    except BaseException as error:
        record |= {"status": "failed", **failure_fields(error)}
        raise
    else:
        record["status"] = "succeeded"
    finally:
        record["seconds"] = round(time.monotonic() - started, 3)
        record["ended_at"] = _now()
        if "gpus" in record:
            record["gpu_seconds"] = round(record["seconds"] * record["gpus"], 3)
        store.write_json(key, record)


def launch_facts() -> dict[str, Any]:
    """Where this process runs: host, pod, node, PID, GPU, image, code revision. Absent facts are left out."""
    facts = {
        "started_at": _now(),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "python": platform.python_version(),
        "pod": os.environ.get("KFP_POD_NAME"),
        "node": os.environ.get("KFP_NODE_NAME"),
        "run_id": os.environ.get("KFP_RUN_ID"),
        "image": os.environ.get("ROBOIMI_IMAGE"),
        "log": os.environ.get("ROBOIMI_LOG"),
        "gpu": os.environ.get("NVIDIA_VISIBLE_DEVICES"),
        "gpus": int(os.environ["ROBOIMI_GPUS"]) if "ROBOIMI_GPUS" in os.environ else None,
        "git_revision": code_revision(),
    }
    return {name: value for name, value in facts.items() if value is not None}


def code_revision() -> str | None:
    """The git revision of this code: the image's own, else that of the checkout, with `-dirty` where files differ."""
    if "ROBOIMI_REVISION" in os.environ:
        return os.environ["ROBOIMI_REVISION"]
    checkout = Path(__file__).resolve().parents[2]
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--exclude=*", "--abbrev=40"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None


def failure_fields(error: BaseException) -> dict[str, Any]:
    """Class, whether running again can help, and the reason: what records say of a failure."""
    if isinstance(error, RoboimiError):
        return {"failure_class": error.failure_class, "retryable": error.retryable, "reason": str(error)}
    reason = f"{type(error).__name__}: {error}"
    interrupted = isinstance(error, KeyboardInterrupt | SystemExit)
    return {
        "failure_class": "interrupted" if interrupted else "crash",
        "retryable": True,
        "reason": reason.rstrip(": "),
    }


def fail(error: RoboimiError) -> None:
    """End the process as the error says: its sentence on standard error, its exit code."""
    print(f"error: {error}", file=sys.stderr, flush=True)
    sys.exit(error.exit_code)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
