"""Metrics of a training: JSON lines that survive kills and resumptions without a gap or a double.

One line a log step: `{"kind": "train", "step": int, "loss": float, ...}`; loss, its parts and the gradient norm are
means over the steps since the line before. Held-out losses are lines of `"kind": "validation"`, rollout validations of
`"kind": "rollout"`. Learning curves are drawn from this file.
"""

import json
import math
import os
import resource
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from roboimi.storage.atomic import atomic_path, writing

FILE = "metrics.jsonl"
TIMINGS = ("data_s", "step_s", "samples_per_s", "seconds", "memory_mb", "gpu_memory_mb")
"""Fields that differ from run to run; all others are equal for equal trainings."""


class MetricsLog:
    """The file `metrics.jsonl` of one training, open for appending.

    Args:
        path: of the file.
        resumed_step: the step that training goes on from. Lines past it are dropped: they will be written again.
    """

    def __init__(self, path: Path, resumed_step: int):
        self._path = path
        kept = [line for line in read_metrics(path) if line["step"] <= resumed_step]
        with atomic_path(path) as temporary:
            temporary.write_text("".join(map(_as_line, kept)))
        with writing(path):
            self._file = open(path, "a", buffering=1)  # noqa: SIM115 (lives as long as the log)
        self._rollout_steps = {line["step"] for line in kept if line["kind"] == "rollout"}

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> dict[str, Any]:
        """Append one line; it is with the operating system when this returns, so that a kill cannot take it back.

        Returns:
            The line as written: values that are not finite have become null.
        """
        line = {"kind": kind, "step": step} | {name: _finite(value) for name, value in values.items()}
        with writing(self._path):
            self._file.write(_as_line(line))
        if kind == "rollout":
            self._rollout_steps.add(step)
        return line

    def has_rollouts(self, step: int) -> bool:
        """Whether the rollout validation of `step` is already there."""
        return step in self._rollout_steps

    def sync(self) -> None:
        """Make all lines durable; called before a checkpoint is committed, so that no line it stands on can be lost."""
        with writing(self._path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
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
