"""Several campaigns as one comparison: their arms side by side, under the tests that one campaign's arms go through."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from roboimi.errors import ConfigError
from roboimi.reports.arm_data import ArmReport
from roboimi.reports.campaign_data import CampaignReport, collect, compare_arms
from roboimi.reports.step_times import StepTime
from roboimi.storage.launch_record import CAMPAIGN
from roboimi.storage.store import Store, open_store

SAME_TASK = ("task", "task_name")
"""What rollouts must share to be compared seed by seed."""


@dataclass(frozen=True)
class RunReference:
    """A campaign in a store."""

    store: Store
    job_id: str

    @classmethod
    def parse(cls, text: str) -> RunReference:
        """From a path or URI `STORE/campaigns/JOB_ID`, also of the report in it.

        Raises:
            ConfigError: it is no such path, or there is no such campaign.
        """
        root, found, rest = text.rstrip("/").rpartition("/campaigns/")
        job_id = rest.split("/")[0]
        if not found or not job_id:
            raise ConfigError(f"{text!r} names no campaign: give STORE/campaigns/RUN_ID, as a path or as s3://...")
        store = open_store(root or "/")
        if not store.list(f"campaigns/{job_id}"):
            known = ", ".join(store.list("campaigns")[-5:]) or "none"
            raise ConfigError(f"{store.uri} has no campaign {job_id!r}: the newest there are {known}.")
        return cls(store, job_id)

    def experiments(self) -> list[dict[str, Any]]:
        """The arms, from the campaign's report; where it has none yet, from their records and their trainings."""
        report = self.store.read_json(f"campaigns/{self.job_id}/report.json")
        if report is not None:
            return [{"arm": arm["arm"], "overrides": arm["overrides"]} for arm in report["arms"]]
        names = self.store.list(f"campaigns/{self.job_id}")
        return [
            {"arm": name, "overrides": []}
            for name in names
            if name != CAMPAIGN and self.store.read_json(f"campaigns/{self.job_id}/{name}/train.json")
        ]


def compare_campaigns(references: Sequence[RunReference]) -> CampaignReport:
    """One report of all arms; with several campaigns an arm's name begins with its campaign's run id.

    Rollouts that two campaigns share (the same policy on the same seeds) are shown once.

    Raises:
        ConfigError: the same campaign twice, or rollouts in different tasks.
    """
    ids = [(reference.store.uri, reference.job_id) for reference in references]
    if len(set(ids)) != len(ids):
        raise ConfigError("The same campaign is named twice: name each once.")
    reports = [collect(item.store, item.job_id, item.experiments()) for item in references]
    if len(reports) == 1:
        return reports[0]
    _require_one_task(reports)
    arms, seen = [], {}
    for report in reports:
        for arm in report.arms:
            name, place = f"{report.job_id}/{arm.name}", arm.prefixes.get("rollouts", "")
            if place and place in seen:
                arms = [
                    _with_note(item, f"also in {report.job_id}") if item.name == seen[place] else item for item in arms
                ]
                continue
            seen[place or name] = name
            arms.append(replace(arm, name=name))
    arms.sort(key=lambda arm: arm.order)
    return replace(
        reports[0],
        job_id=" + ".join(report.job_id for report in reports),
        status="",
        arms=tuple(arms),
        steps=tuple(replace(step, name=f"{r.job_id}/{step.name}") for r in reports for step in _told(r.steps)),
        revisions=tuple(dict.fromkeys(revision for report in reports for revision in report.revisions)),
        started_at=min((report.started_at for report in reports if report.started_at), default=""),
        ended_at=max((report.ended_at for report in reports), default=""),
        **compare_arms(arms),
    )


def _require_one_task(reports: Sequence[CampaignReport]) -> None:
    tasks: dict[str, str] = {}
    for report in reports:
        for arm in report.arms:
            if arm.rollouts:
                task = str({key: arm.rollouts.get(key) for key in SAME_TASK})
                tasks.setdefault(task, f"{report.job_id}/{arm.name}")
    if len(tasks) > 1:
        first, second, *_ = tasks.values()
        raise ConfigError(
            f"{first} and {second} were rolled out in different tasks, so their episodes cannot be compared: name "
            "campaigns of one task."
        )


def _told(steps: Sequence[StepTime]) -> list[StepTime]:
    return [step for step in steps if step.warnings or step.seconds is not None]


def _with_note(arm: ArmReport, note: str) -> ArmReport:
    return replace(arm, notes=(*arm.notes, note))
