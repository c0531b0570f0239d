"""Metrics of a training: JSON lines that survive kills and resumptions without a gap or a double.

One line a log step: `{"kind": "train", "step": int, "loss": float, ...}`; loss, its parts and the gradient norm are
means over the steps since the line before. Held-out losses are lines of `"kind": "validation"`, rollout validations of
`"kind": "rollout"`. Learning curves are drawn from this file.
"""

import contextlib
import json
import math
import os
import resource
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from roboimi.errors import DiskFullError
from roboimi.storage.atomic import atomic_path, writing

FILE = "metrics.jsonl"
TIMINGS = ("data_s", "step_s", "samples_per_s", "seconds", "memory_mb", "gpu_memory_mb")
"""Fields that differ from run to run; all others are equal for equal trainings."""


class MetricsLog:
    """The file `metrics.jsonl` of one training, open for appending.

    Lines that find no room on the disk are kept and written as soon as there is some.

    Args:
        path: of the file.
        resumed_step: the step that training goes on from. Lines past it are dropped: they will be written again.
        committed: the file as the checkpoint of that step has it; None: what is at `path`.
    """

    def __init__(self, path: Path, resumed_step: int, committed: str | None = None):
        self._path = path
        kept = [line for line in read_metrics(path) if line["step"] <= resumed_step]
        if committed is not None:
            vouched = [json.loads(line) for line in committed.splitlines()]
            # Rollouts come after their step's checkpoint; those that were done need not be done again.
            kept = vouched + [line for line in kept if line["kind"] == "rollout" and line not in vouched]
        self._lines = [_as_line(line) for line in kept]
        with atomic_path(path) as temporary:
            temporary.write_text(self.text())
        with writing(path):
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND)
        self._rollout_steps = {line["step"] for line in kept if line["kind"] == "rollout"}
        self._unwritten = b""

    def text(self) -> str:
        """All lines, those that are not in the file yet too: what a checkpoint keeps."""
        return "".join(self._lines)

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> dict[str, Any]:
        """Append one line; it is with the operating system when this returns, so that a kill cannot take it back.

        Returns:
            The line as written: values that are not finite have become null.

        Raises:
            StoreError: the file cannot be written, for another reason than a full disk.
        """
        line = {"kind": kind, "step": step} | {name: _finite(value) for name, value in values.items()}
        self._lines.append(_as_line(line))
        self._unwritten += self._lines[-1].encode()
        with contextlib.suppress(DiskFullError):
            self._write_out()
        if kind == "rollout":
            self._rollout_steps.add(step)
        return line

    def has_rollouts(self, step: int) -> bool:
        """Whether the rollout validation of `step` is already there."""
        return step in self._rollout_steps

    def close(self) -> None:
        """Make all lines durable and close the file.

        Raises:
            DiskFullError: lines are left that find no room.
        """
        try:
            self._write_out()
            with writing(self._path):
                os.fsync(self._file)
        finally:
            os.close(self._file)

    def _write_out(self) -> None:
        with writing(self._path):
            while self._unwritten:
                # What did fit is in the file, and only the rest is tried again.
                self._unwritten = self._unwritten[os.write(self._file, self._unwritten) :]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with contextlib.ExitStack() as stack:
            if error is not None:  # which says more than that its last lines found no room
                stack.enter_context(contextlib.suppress(DiskFullError))
            self.close()


class Window:
    """Sums since the last log line. They travel in the checkpoint, so a resumed training logs the same means.

    Args:
        state: of another window, from `state_dict`.
    """

    def __init__(self, state: Mapping[str, Any] | None = None):
        self._count: int = state["count"] if state else 0
        self._sums: dict[str, float] = dict(state["sums"]) if state else {}

    def add(self, values: Mapping[str, float]) -> None:
        """Count one step's values."""
        self._count += 1
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value

    def means(self) -> dict[str, float]:
        """The mean of each value over the window; empty when no step was counted."""
        return {name: total / self._count for name, total in self._sums.items()}

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON types; floats survive JSON to the last bit."""
        return {"count": self._count, "sums": dict(self._sums)}


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a metrics file, in order; none where there is no file.

    A last line without its end was cut off by a kill, and is left out.
    """
    if not path.exists():
        return []
    whole, _, _ = path.read_text().rpartition("\n")
    return [json.loads(line) for line in whole.splitlines()]


def memory_mb() -> float:
    """Peak resident memory of this process (MB)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1e6 if sys.platform == "darwin" else 1e3), 1)


def _as_line(values: Mapping[str, Any]) -> str:
    return json.dumps(values, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
