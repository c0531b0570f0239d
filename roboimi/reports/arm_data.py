"""One arm of a campaign: its rollouts, its training, its filmstrips, or why it has none of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from roboimi.errors import RoboimiError
from roboimi.reports.statistics import Proportion, wilson
from roboimi.reports.step_times import ABSENT, SUCCEEDED, StepTime, step_time
from roboimi.storage.store import Store
from roboimi.vla.rollouts.outcomes import FAILURE, SUCCESS
from roboimi.vla.rollouts.records import read_episodes
from roboimi.vla.training.metrics import FILE as METRICS
from roboimi.vla.training.metrics import read_metrics

CONTROL, BLIND, CANDIDATE = "control", "blind", "candidate"
ROLE_OF_BACKBONE = {"privileged_state": CONTROL, "blind": BLIND}
RESULT = "RESULT.json"
PREFIX_OF_STEP = {"train": "training", "evaluate": "rollouts"}
"""Which field of a step's launch record says where its results lie."""

UNREADABLE = (RoboimiError, OSError, KeyError, TypeError, ValueError)
"""What reading a damaged or foreign document can raise."""


@dataclass(frozen=True)
class Filmstrip:
    """An episode as a row of pictures: WebP `image`, or `reason` why there is none."""

    kind: str
    seed: int
    image: bytes = field(default=b"", repr=False)
    reason: str = ""


@dataclass(frozen=True)
class ArmReport:
    """One arm.

    Attributes:
        name: of the arm.
        role: `control` (told the state of the scene), `blind` (sees nothing), or `candidate`.
        overrides: its Hydra overrides.
        steps: its own steps, in their order.
        missing: why it has no result, as a sentence; empty when it has one.
        success: over the episodes whose outcome is known.
        unknown: episodes whose outcome is not known.
        outcomes: seed -> success, known ones only.
        stages: highest stage reached -> episodes.
        loss: (step, loss) of the training.
        validation: (step, successes, episodes) of the rollouts during training.
        filmstrips: a success and a failure, where there are any.
        training: the training's result and its `config`, `encoder`, `dataset`, `dataset_digest`; empty without one.
        rollouts: the rollouts' result document; empty without one.
        prefixes: where both lie in the store.
        notes: what could not be read besides the result itself.
    """

    name: str
    role: str
    overrides: tuple[str, ...]
    steps: tuple[StepTime, ...]
    missing: str = ""
    success: Proportion | None = None
    unknown: int = 0
    outcomes: Mapping[int, bool] = field(default_factory=dict)
    stages: Mapping[int, int] = field(default_factory=dict)
    loss: tuple[tuple[int, float], ...] = ()
    validation: tuple[tuple[int, int, int], ...] = ()
    filmstrips: tuple[Filmstrip, ...] = ()
    training: Mapping[str, Any] = field(default_factory=dict)
    rollouts: Mapping[str, Any] = field(default_factory=dict)
    prefixes: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def order(self) -> int:
        """Reference arms come first."""
        return (CONTROL, BLIND, CANDIDATE).index(self.role)

    @property
    def mean_stage(self) -> float | None:
        """Mean of the highest stage reached; None without episodes."""
        episodes = sum(self.stages.values())
        return sum(stage * count for stage, count in self.stages.items()) / episodes if episodes else None

    def reached(self, stage: int) -> float:
        """Share of the known episodes that reached `stage`."""
        episodes = sum(self.stages.values())
        return sum(count for reached, count in self.stages.items() if reached >= stage) / episodes if episodes else 0.0


def role_of(name: str, overrides: tuple[str, ...]) -> str:
    """Whether an arm is a reference arm: by the backbone that it overrides, else by its name."""
    chosen = [value for key, _, value in (item.partition("=") for item in overrides) if key.lstrip("+") == "backbone"]
    return ROLE_OF_BACKBONE.get(chosen[-1] if chosen else name, CANDIDATE)


def read_arm(
    store: Store, experiment: Mapping[str, Any], records: Mapping[str, Mapping[str, Any] | None], blocked: str
) -> ArmReport:
    """Gather one arm.

    Args:
        store: where the campaign ran.
        experiment: the arm as it was asked for, with `arm` and `overrides`.
        records: its launch records by step, `train` and `evaluate`.
        blocked: why no arm could start, or empty.
    """
    name = str(experiment["arm"])
    overrides = tuple(str(item) for item in experiment.get("overrides") or ())
    steps = tuple(step_time(step, record) for step, record in records.items())
    facts: dict[str, Any] = {"name": name, "role": role_of(name, overrides), "overrides": overrides, "steps": steps}
    prefixes = {kind: str((records[step] or {}).get(kind) or "") for step, kind in PREFIX_OF_STEP.items()}
    facts["prefixes"] = prefixes
    facts["missing"] = _missing(steps, blocked)
    # A damaged file must cost its arm what it held, never the campaign its report.
    try:
        facts |= _training_facts(store, prefixes["training"])
    except UNREADABLE as error:
        facts["notes"] = (f"what is known of the training cannot be read ({type(error).__name__}: {error})",)
    try:
        if not facts["missing"]:
            facts |= _rollout_facts(store, prefixes["rollouts"])
    except UNREADABLE as error:
        facts["missing"] = f"its rollouts cannot be read ({type(error).__name__}: {error})"
    return ArmReport(**facts)


def _missing(steps: tuple[StepTime, ...], blocked: str) -> str:
    for step in steps:
        if step.status == ABSENT:
            before = " because " + blocked if blocked else ""
            return f"{step.name} never started{before}"
        if step.status != SUCCEEDED:
            return f"{step.name} {step.ending}"
    return ""


def _training_facts(store: Store, prefix: str) -> dict[str, Any]:
    if not prefix:
        return {}
    lines = read_metrics(store.fetch(prefix, [METRICS]) / METRICS)
    record = store.read_json(f"{prefix}/TRAINING.json") or {}
    dataset = record.get("dataset") or {}
    return {
        "training": {
            **(store.read_json(f"{prefix}/{RESULT}") or {}),
            "config": record.get("config") or {},
            "encoder": record.get("encoder"),
            "dataset": dataset.get("path"),
            "dataset_digest": dataset.get("digest"),
        },
        "loss": tuple(
            (line["step"], line["loss"]) for line in lines if line["kind"] == "train" and line.get("loss") is not None
        ),
        "validation": tuple(
            (line["step"], line["successes"], line["episodes"]) for line in lines if line["kind"] == "rollout"
        ),
    }


def _rollout_facts(store: Store, prefix: str) -> dict[str, Any]:
    result = store.committed(prefix, RESULT) if prefix else None
    if result is None:
        return {"missing": "evaluate ended without a result"}
    folder = store.fetch(prefix)
    outcomes = {
        line["seed"]: line["outcome"] == SUCCESS
        for line in read_episodes(folder)
        if line["outcome"] in (SUCCESS, FAILURE) and line["seed"] in set(result["seeds"])
    }
    if (sum(outcomes.values()), len(outcomes)) != (result["successes"], result["episodes"]):
        raise ValueError(f"episodes.jsonl does not hold the {result['episodes']} episodes that {RESULT} counts")
    strips = []
    for kind, strip in sorted(result.get("filmstrips", {}).items(), reverse=True):  # the success first
        image = (folder / strip["file"]).read_bytes() if "file" in strip else b""
        strips.append(Filmstrip(kind, strip["seed"], image, strip.get("reason", "")))
    return {
        "rollouts": result,
        "success": wilson(sum(outcomes.values()), len(outcomes)),
        "unknown": result["unknown"],
        "outcomes": outcomes,
        "stages": {int(stage): count for stage, count in result["stages"].items()},
        "filmstrips": tuple(strips),
    }
