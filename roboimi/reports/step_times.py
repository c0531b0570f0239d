"""How one step of a campaign ended, and how long it took."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SUCCEEDED, FAILED, KILLED, ABSENT = "succeeded", "failed", "killed", "absent"


@dataclass(frozen=True)
class StepTime:
    """One step.

    Attributes:
        name: of the step.
        status: `succeeded`, `failed`, `killed` (its record still says running), or `absent` (it did not run here).
        seconds: wall time, where it ended.
        result: what a person reads of its result, or why it failed.
        failure_class: of a failed step.
        host: where it ran.
        recognised: whether it found its result finished, and had nothing to do.
        warnings: what it found worth saying without failing.
    """

    name: str
    status: str
    seconds: float | None = None
    result: str = ""
    failure_class: str = ""
    host: str = ""
    recognised: bool = False
    warnings: tuple[str, ...] = ()

    @property
    def ending(self) -> str:
        """How it ended, as the end of a sentence about the step."""
        if self.status == FAILED:
            reason = self.result or "without a recorded reason"
            return f"failed ({self.failure_class}): {reason}" if self.failure_class else f"failed: {reason}"
        if self.status == KILLED:
            where = f" on {self.host}" if self.host else ""
            return f"was killed{where}: its record still says running (out of memory, or stopped from outside)"
        return "succeeded" if self.status == SUCCEEDED else "never started"


def step_time(name: str, record: Mapping[str, Any] | None) -> StepTime:
    """Read a launch record at the end of its campaign; None: there is no record."""
    if not record:
        return StepTime(name, ABSENT)
    status = str(record.get("status", ""))
    seconds, warnings = record.get("seconds"), record.get("warnings")
    return StepTime(
        name=name,
        status={"running": KILLED}.get(status, status if status in (SUCCEEDED, FAILED) else FAILED),
        seconds=None if seconds is None else float(seconds),
        result=str(record.get("reason") or record.get("result") or ""),
        failure_class=str(record.get("failure_class") or ""),
        host=str(record.get("host") or ""),
        recognised=bool(record.get("recognised")),
        warnings=tuple(map(str, warnings)) if isinstance(warnings, list) else (),
    )
