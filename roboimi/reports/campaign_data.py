"""All that a campaign left behind, in one typed `CampaignReport`; an arm that died is named, never dropped.

Read from the store, and nothing but small files of it:

```
campaigns/<job>/campaign/<step>.json   validate: dataset, dataset_digest, episodes, frames · smoke: encoder
campaigns/<job>/<arm>/train.json       training: prefix of the training
campaigns/<job>/<arm>/evaluate.json    rollouts: prefix of the rollouts
campaigns/<job>/.../<step>-1-of-4.json a part of encode or evaluate, where several pods share it
trainings/<key>/RESULT.json, metrics.jsonl
rollouts/<key>/RESULT.json, episodes.jsonl, filmstrip_*.webp
```
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import combinations
from typing import Any

from roboimi.errors import RoboimiError
from roboimi.reports.arm_data import CANDIDATE, ArmReport, read_arm
from roboimi.reports.settings import Setting, SettingComparison, compare_settings, group_settings
from roboimi.reports.statistics import PairedComparison, compare_pairs
from roboimi.reports.step_times import StepTime, step_time
from roboimi.storage.launch_record import CAMPAIGN
from roboimi.storage.store import Store

CAMPAIGN_STEPS = ("validate", "smoke", "preflight", "encode")
ARM_STEPS = ("train", "evaluate")

ENDED = frozenset({"SUCCEEDED", "COMPLETE", "FAILED", "CANCELED", "CANCELLED"})
"""States that say how a run ended. Backends before KFP 2.17 tell the exit task of others, such as RUNNING."""


@dataclass(frozen=True)
class DataFacts:
    """The demonstrations: `reference` as given, hex `digest`, how many; empty or None where not recorded."""

    reference: str = ""
    digest: str = ""
    episodes: int | None = None
    frames: int | None = None


@dataclass(frozen=True)
class EncoderFacts:
    """The frozen vision tower; `is_standin` is None where no step recorded the encoder."""

    name: str = ""
    digest: str = ""
    description: str = ""
    is_standin: bool | None = None


@dataclass(frozen=True)
class CampaignReport:
    """What a campaign showed.

    Attributes:
        job_id: the campaign's run id.
        status: final state as the orchestrator gave it (`SUCCEEDED`, `FAILED`, ...), or empty.
        data: the demonstrations.
        encoder: the frozen vision tower.
        arms: reference arms first, then the candidates in the order in which they were asked for.
        steps: the campaign's own steps, in their order.
        settings: the candidates without the seeds of their trainings.
        setting_pairs: settings against each other, best first; Holm over these; empty where all were trained once.
        candidate_pairs: checkpoints of different settings against each other, best first; Holm over these; empty where
            there are `setting_pairs`, which say more.
        reference_pairs: candidates against the reference arms; Holm over these.
        revisions: git revisions of the code that ran, in order of appearance.
        started_at: ISO time of the first step, or empty.
        ended_at: ISO time of the last end, or empty.
        written_at: ISO time of this report.
        gpu_seconds: seconds times GPUs of all steps that asked for any, the last attempt of each; None without GPUs.
    """

    job_id: str
    status: str
    data: DataFacts
    encoder: EncoderFacts
    arms: tuple[ArmReport, ...]
    steps: tuple[StepTime, ...]
    settings: tuple[Setting, ...] = ()
    setting_pairs: tuple[SettingComparison, ...] = ()
    candidate_pairs: tuple[PairedComparison, ...] = ()
    reference_pairs: tuple[PairedComparison, ...] = ()
    revisions: tuple[str, ...] = ()
    started_at: str = ""
    ended_at: str = ""
    written_at: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    gpu_seconds: float | None = None

    @property
    def candidates(self) -> tuple[ArmReport, ...]:
        """The arms that the campaign is about."""
        return tuple(arm for arm in self.arms if arm.role == CANDIDATE)

    @property
    def missing(self) -> tuple[ArmReport, ...]:
        """The arms without a result."""
        return tuple(arm for arm in self.arms if arm.missing)

    @property
    def wall_seconds(self) -> float | None:
        """From the first step's start to the last end; None where no step recorded both."""
        if not self.started_at or not self.ended_at:
            return None
        return (datetime.fromisoformat(self.ended_at) - datetime.fromisoformat(self.started_at)).total_seconds()

    def references(self, role: str) -> tuple[ArmReport, ...]:
        """The reference arms of one role."""
        return tuple(arm for arm in self.arms if arm.role == role)


def collect(store: Store, job_id: str, experiments: Sequence[Mapping[str, Any]], status: str = "") -> CampaignReport:
    """Gather a campaign's results, whatever happened to it.

    Args:
        store: where the campaign ran.
        job_id: its run id.
        experiments: the expected arms, each with `arm` (name) and `overrides`.
        status: final state as the orchestrator gave it; one that is not final says nothing.
    """
    status = status if status in ENDED else ""
    shared = {step: _record(store, job_id, CAMPAIGN, step) for step in CAMPAIGN_STEPS}
    blocked = _blocking_failure(shared) or (f"the campaign ended as {status}" if status else "")
    arms, records = [], [record for record in shared.values() if record]
    for experiment in experiments:
        own = {step: _record(store, job_id, str(experiment["arm"]), step) for step in ARM_STEPS}
        records += [record for record in own.values() if record]
        arms.append(read_arm(store, experiment, own, blocked))
    arms.sort(key=lambda arm: arm.order)  # stable: the order asked for, within a role
    return CampaignReport(
        job_id=job_id,
        status=status,
        data=_data_facts(records, arms),
        encoder=_encoder_facts(records, arms),
        arms=tuple(arms),
        steps=tuple(step_time(step, record) for step, record in shared.items() if record or step != "preflight"),
        **compare_arms(arms),
        revisions=tuple(dict.fromkeys(str(r["git_revision"]) for r in records if r.get("git_revision"))),
        started_at=min((str(record["started_at"]) for record in records if record.get("started_at")), default=""),
        ended_at=max((str(record["ended_at"]) for record in records if record.get("ended_at")), default=""),
        gpu_seconds=_gpu_seconds(store, job_id),
    )


def _record(store: Store, job_id: str, arm: str, step: str) -> dict[str, Any] | None:
    """A launch record; one that cannot be read is shown as a failed step, so that the report is still written."""
    folder = f"campaigns/{job_id}/{arm}"
    try:
        return _with_shards(store.read_json(f"{folder}/{step}.json"), _shards(store, folder, step))
    except RoboimiError as error:
        return {"status": "failed", "failure_class": error.failure_class, "reason": str(error)}


def _shards(store: Store, folder: str, step: str) -> list[dict[str, Any]]:
    names = [name for name in store.list(folder) if name.startswith(f"{step}-") and name.endswith(".json")]
    return [record for name in sorted(names) if (record := store.read_json(f"{folder}/{name}"))]


def _with_shards(record: dict[str, Any] | None, shards: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The record of a stage that several pods shared: its time is that of the longest, and of the step after them.

    Where that step never ran, the record is that of the first shard that did not succeed.
    """
    if record is None:
        return next((dict(shard) for shard in shards if shard.get("status") != "succeeded"), None)
    if not shards or record.get("seconds") is None:
        return record
    longest = max(float(shard.get("seconds") or 0.0) for shard in shards)
    recognised = bool(record.get("recognised")) and all(shard.get("recognised") for shard in shards)
    return {**record, "seconds": record["seconds"] + longest, "recognised": recognised}


def _gpu_seconds(store: Store, job_id: str) -> float | None:
    known = []
    for arm in store.list(f"campaigns/{job_id}"):
        names = [name for name in store.list(f"campaigns/{job_id}/{arm}") if name.endswith(".json")]
        records = [_readable(store, f"campaigns/{job_id}/{arm}/{name}") for name in names]
        known += [float(record["gpu_seconds"]) for record in records if "gpu_seconds" in record]
    return sum(known) if known else None


def _readable(store: Store, key: str) -> dict[str, Any]:
    """A record; an empty one where it cannot be read, which the step's own place in the report says."""
    try:
        return store.read_json(key) or {}
    except RoboimiError:
        return {}


def _blocking_failure(shared: Mapping[str, Mapping[str, Any] | None]) -> str:
    """Why no arm could start: the first campaign step that did not succeed; empty when all did."""
    for step, record in shared.items():
        if record and record.get("status") != "succeeded":
            return f"{step} {step_time(step, record).ending}"
    return ""


def compare_arms(arms: Sequence[ArmReport]) -> dict[str, Any]:
    """What a report says of its arms' differences: the fields `settings` and the three kinds of pairs."""
    outcomes = {arm.name: arm.outcomes for arm in arms if arm.success is not None}
    known = [arm for arm in arms if arm.name in outcomes]
    candidates = sorted((arm for arm in known if arm.role == CANDIDATE), key=lambda arm: -arm.success.rate)
    references = [arm for arm in known if arm.role != CANDIDATE]
    settings = group_settings(arms)
    setting_pairs = compare_settings(settings, {arm.name: arm for arm in known})
    setting_of = {name: index for index, setting in enumerate(settings) for name in setting.arms}
    among = [
        (first.name, second.name)
        for first, second in combinations(candidates, 2)
        if not setting_pairs and setting_of.get(first.name) != setting_of.get(second.name)
    ]
    against = [(candidate.name, reference.name) for reference in references for candidate in candidates]
    return {
        "settings": tuple(settings),
        "setting_pairs": tuple(setting_pairs),
        "candidate_pairs": tuple(compare_pairs(outcomes, among)),
        "reference_pairs": tuple(compare_pairs(outcomes, against)),
    }


def _data_facts(records: Sequence[Mapping[str, Any]], arms: Sequence[ArmReport]) -> DataFacts:
    known = _first_with("dataset", records, arms)
    reference, _, digest = str(known.get("dataset", "")).partition("@sha256:")
    return DataFacts(
        reference=reference,
        digest=str(known.get("dataset_digest") or digest),
        episodes=_whole(known.get("episodes")),
        frames=_whole(known.get("frames")),
    )


def _encoder_facts(records: Sequence[Mapping[str, Any]], arms: Sequence[ArmReport]) -> EncoderFacts:
    from roboimi.vla.models.encoder_spec import EncoderSpec

    known = _first_with("encoder", records, arms)
    name = str(known.get("encoder", ""))
    if not name:
        return EncoderFacts()
    try:
        spec = EncoderSpec.parse(name)
    except RoboimiError:  # a folder of another machine, say: the name is still a fact
        digest = str(known.get("encoder_digest") or "")
        return EncoderFacts(name=name, digest=digest, description=name, is_standin=False)
    digest = str(known.get("encoder_digest") or spec.digest)
    return EncoderFacts(name=name, digest=digest, description=spec.description, is_standin=spec.is_standin)


def _first_with(key: str, records: Sequence[Mapping[str, Any]], arms: Sequence[ArmReport]) -> Mapping[str, Any]:
    """A step that a cache skipped left no record; then a training's own result knows."""
    return next((known for known in (*records, *(arm.training for arm in arms)) if known.get(key)), {})


def _whole(value: Any) -> int | None:
    return None if value is None else int(value)
