"""The steps that a campaign's parameters lead to, each with the name and arm that its launch record will have."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from roboimi.storage.launch_record import CAMPAIGN

SHARED = ("validate_dataset", "smoke_test_encoder", "preflight_gpu")


@dataclass(frozen=True)
class ExpectedStep:
    """A step.

    Attributes:
        task: in `pipelines.profiles.STEPS`.
        indices: of the loops around it, outermost first.
        arm: of its launch record.
        step: of its launch record.
    """

    task: str
    indices: tuple[int, ...]
    arm: str
    step: str


def expected_steps(parameters: Mapping[str, Any]) -> list[ExpectedStep]:
    """All steps, in the order in which they come.

    Args:
        parameters: of the run; `encode_shards` and `eval_shards` are lists such as `["1/2", "2/2"]`.
    """
    steps = [ExpectedStep(task, (), CAMPAIGN, record_step(task)) for task in SHARED]
    steps += _sharded("encode", parameters.get("encode_shards"), "encode_features", (), CAMPAIGN)
    for index, experiment in enumerate(parameters.get("experiments") or []):
        arm = str(experiment["arm"])
        steps.append(ExpectedStep("train_policy", (index,), arm, "train"))
        steps += _sharded("evaluate", parameters.get("eval_shards"), "evaluate_policy", (index,), arm)
    return [*steps, ExpectedStep("compare_experiments", (), CAMPAIGN, "compare")]


def record_step(task: str) -> str:
    """What a launch record calls a step: its verb."""
    return task.partition("_")[0]


def _sharded(verb: str, shards: Any, whole: str, indices: tuple[int, ...], arm: str) -> list[ExpectedStep]:
    """The shards, where there are several, and the step that brings them together."""
    names = [str(shard) for shard in shards or []]
    parts = [
        ExpectedStep(f"{verb}_shard", (*indices, number), arm, f"{verb}-{name.replace('/', '-of-')}")
        for number, name in enumerate(names)
        if len(names) > 1
    ]
    return [*parts, ExpectedStep(whole, indices, arm, verb)]
