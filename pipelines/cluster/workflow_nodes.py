"""Which step of which arm a node of a run's Argo workflow is, and how it stands.

KFP compiles a task `train-policy` inside a loop to nodes whose names tell the path:

    WORKFLOW.root.exit-handler-1.for-loop-4.iteration-iterations(1:1).iteration-item.train-policy      the step
    ....train-policy-driver                           KFP's own pod, which resolves the step's inputs
    ....train-policy.executor, or .executor(0), .executor(1) with retries     the pods that run our code

Where the cluster's defaults retry every template, as those of a stock KFP do, each part has attempts of its own:
`.iteration-iterations(1:1)(0).iteration-item(0).train-policy(0).executor(0)`, beside nodes without the last `(0)` that
stand for all attempts. A step whose outputs came from KFP's cache has no executor that ran.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipelines.profiles import STEPS

Object = dict[str, Any]

_ITERATION = re.compile(r"\((\d+):[^)]*\)")
_ATTEMPT = re.compile(r"\(\d+\)$")
_NUMBER = re.compile(r"-\d+$")
_OVER = frozenset({"Succeeded", "Failed", "Error", "Skipped", "Omitted"})


@dataclass
class StepNodes:
    """The nodes of one step.

    Attributes:
        step: one of `pipelines.profiles.STEPS`.
        indices: of the loops around it, outermost first.
        phase: Argo's, of the whole step.
        driver: phase of KFP's own pod before it.
        attempts: ids of the nodes of the pods that run our code, by their start.
        started: when the last attempt started, ISO; "" where none has.
        finished: when the step ended; "" where it has not.
        messages: what Argo says of its nodes, the most telling first.
        cached: whether its outputs came from KFP's cache.
    """

    step: str
    indices: tuple[int, ...]
    phase: str = "Pending"
    driver: str = ""
    attempts: list[str] = field(default_factory=list)
    started: str = ""
    finished: str = ""
    messages: list[str] = field(default_factory=list)
    cached: bool = False

    @property
    def over(self) -> bool:
        """Whether it has ended, in whatever way."""
        return self.phase in _OVER


def step_nodes(nodes: Sequence[Object]) -> list[StepNodes]:
    """The steps of a workflow, by their start.

    Args:
        nodes: the values of the workflow's `status.nodes`.
    """
    found: dict[tuple[str, tuple[int, ...]], StepNodes] = {}
    executors: dict[tuple[str, tuple[int, ...]], list[Object]] = {}
    # What stands for all attempts comes after them, and counts.
    for node in sorted(nodes, key=lambda node: (_is_attempt(node), node.get("startedAt") or "")):
        place = _place(node.get("name", ""))
        if place is None:
            continue
        step, indices, part = place
        entry = found.setdefault((step, indices), StepNodes(step, indices))
        if part == "step":
            entry.phase, entry.finished = node.get("phase", "Pending"), node.get("finishedAt") or ""
        elif part == "driver":
            entry.driver = node.get("phase", "")
        else:
            executors.setdefault((step, indices), []).append(node)
        if node.get("message"):
            # A pod's own message says more than that of what gave up after it; the last one counts.
            entry.messages.insert(0 if node.get("type") == "Pod" else len(entry.messages), node["message"])
    for place, entry in found.items():
        _attempts(entry, executors.get(place, []))
    return list(found.values())


def _attempts(entry: StepNodes, executors: Iterable[Object]) -> None:
    ran = [node for node in executors if node.get("type") == "Pod" and node.get("phase") not in {"Skipped", "Omitted"}]
    entry.cached = entry.phase == "Succeeded" and not ran
    for node in ran:
        entry.attempts.append(node["id"])
        entry.started = node.get("startedAt") or entry.started
    if entry.driver in {"Failed", "Error"} and not entry.over:
        entry.phase = entry.driver


def _is_attempt(node: Object) -> bool:
    """False for one of several attempts, so that it sorts first."""
    return _ATTEMPT.search(node.get("name", "")) is None


def _place(name: str) -> tuple[str, tuple[int, ...], str] | None:
    """Step, loop indices and which of its nodes this is: `step`, `driver` or `executor`."""
    path = name.split(".")
    indices = tuple(int(match[1]) for part in path if (match := _ITERATION.search(part)))
    for depth, part in enumerate(reversed(path)):
        plain = _ATTEMPT.sub("", part)
        driver = plain.endswith("-driver")
        if (step := _step(plain.removesuffix("-driver"))) is not None:
            return step, indices, "driver" if driver else "step" if depth == 0 else "executor"
    return None


def _step(task: str) -> str | None:
    """The step that a task of the compiled pipeline runs; KFP numbers tasks of one component."""
    for candidate in (task, _NUMBER.sub("", task)):
        if candidate.replace("-", "_") in STEPS:
            return candidate.replace("-", "_")
    return None
