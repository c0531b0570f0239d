"""Runs of campaigns on a KFP server: what they are called, which of them are meant, how they stand."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self

from pipelines.cluster.kfp_api import KfpApi
from pipelines.cluster.kfp_connection import NotFoundError
from roboimi.errors import ConfigError, RoboimiError

OVER = frozenset({"SUCCEEDED", "FAILED", "SKIPPED", "CANCELED"})
"""KFP's states of a run that has ended; in every other one it is active."""

LATEST = "latest"
RUNS_LOOKED_THROUGH = 1000
_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_NAME = re.compile(r"(?P<campaign>.+)-[0-9a-f]{7}(-dirty)?-[0-9a-f]{8}-\d{8}T\d{6}Z")


class RunStateError(RoboimiError):
    """A run whose state does not allow what was asked for."""

    exit_code = 24
    failure_class = "run-state"


@dataclass(frozen=True)
class CampaignRun:
    """One run.

    Attributes:
        id: KFP's; launch records lie under it.
        name: what people see, see `run_name`.
        state: KFP's, `RUNNING` and the like.
        experiment_id: which experiment it is in.
        created_at, finished_at: UTC; None where KFP does not say.
        parameters: as they were given.
        tasks: display name and state of every node, where the run was asked for by itself.
        archived: whether it is out of the lists.
    """

    id: str
    name: str
    state: str
    experiment_id: str
    created_at: datetime | None
    finished_at: datetime | None
    parameters: dict[str, Any]
    tasks: tuple[tuple[str, str], ...]
    archived: bool

    @classmethod
    def of(cls, run: Any) -> Self:
        """From what the generated client gives."""
        details = run.run_details.task_details if run.run_details else None
        return cls(
            id=run.run_id,
            name=run.display_name,
            state=run.state or "PENDING",
            experiment_id=run.experiment_id,
            created_at=_time(run.created_at),
            finished_at=_time(run.finished_at),
            parameters=dict((run.runtime_config and run.runtime_config.parameters) or {}),
            tasks=tuple((task.display_name or "", task.state or "") for task in details or []),
            archived=run.storage_state == "ARCHIVED",
        )

    @property
    def active(self) -> bool:
        """Whether it has not ended."""
        return self.state not in OVER

    @property
    def campaign(self) -> str | None:
        """The campaign's name, without revision, configuration and time; None for a run that was named otherwise."""
        match = _NAME.fullmatch(self.name)
        return match["campaign"] if match else None

    @property
    def arms(self) -> list[str]:
        """Names of the arms, in their order."""
        experiments = self.parameters.get("experiments")
        return [str(item.get("arm")) for item in experiments] if isinstance(experiments, list) else []

    @property
    def store(self) -> str:
        """URI of the store that its steps write to; empty where the pipeline's default was taken."""
        return str(self.parameters.get("store") or "")

    def age(self, now: datetime | None = None) -> str:
        """How long ago it was made."""
        return (
            "" if self.created_at is None else duration(((now or datetime.now(UTC)) - self.created_at).total_seconds())
        )


def run_name(campaign: str, version: str, now: datetime | None = None) -> str:
    """`<campaign>-<git sha7>-<config hash8>-<UTC>`: a run cannot be labelled, so its name holds what it is.

    Args:
        campaign: the campaign's name; runs of one name can supersede each other.
        version: of the pipeline, `<git sha7>-<config hash8>`.
        now: UTC.
    """
    return f"{campaign}-{version}-{(now or datetime.now(UTC)).strftime('%Y%m%dT%H%M%SZ')}"


def is_campaign(run: CampaignRun) -> bool:
    """Whether a run is one of our pipeline, whatever it was named or by whom it was uploaded."""
    return {"dataset", "dataset_digest"} <= run.parameters.keys()


def campaign_runs(api: KfpApi, experiment_id: str | None = None) -> Iterator[CampaignRun]:
    """The campaigns that are not archived, newest first."""
    for run in api.runs(experiment_id=experiment_id):
        found = CampaignRun.of(run)
        if not found.archived and is_campaign(found):
            yield found


def find_run(api: KfpApi, text: str, experiment: str | None = None) -> CampaignRun:
    """The run that is meant.

    Args:
        api: the server.
        text: a run's id, a beginning of one, its name, or `latest`.
        experiment: in which it is looked for by anything but its whole id; None: in all.

    Raises:
        ConfigError: there is none, or several.
    """
    if _ID.fullmatch(text):
        try:
            return CampaignRun.of(api.run(text))
        except NotFoundError as error:
            raise ConfigError(
                f"There is no run {text} on {api.connection.host}: `status` lists what there is."
            ) from error
    found: list[CampaignRun] = []
    for number, run in enumerate(campaign_runs(api, experiment_id_of(api, experiment))):
        if text in (LATEST, run.name):
            return CampaignRun.of(api.run(run.id))
        if run.id.startswith(text):
            found.append(run)
        if number >= RUNS_LOOKED_THROUGH:
            break
    if len(found) == 1:
        return CampaignRun.of(api.run(found[0].id))
    where = f"{api.connection.host}{f' in experiment {experiment!r}' if experiment else ''}"
    if found:
        several = ", ".join(run.id for run in found[:3])
        raise ConfigError(f"{text!r} begins the ids of {len(found)} runs ({several}): give more of it.")
    raise ConfigError(f"There is no campaign {text!r} on {where}: `status` lists them.")


def experiment_id_of(api: KfpApi, name: str | None) -> str | None:
    """The id of an experiment that has to be there; None: none was named.

    Raises:
        ConfigError: there is none of this name.
    """
    if name is None:
        return None
    if (found := api.experiment_id(name)) is None:
        raise ConfigError(f"There is no experiment {name!r} on {api.connection.host}: correct --experiment.")
    return found


def duration(seconds: float) -> str:
    """`40 s`, `12 min`, `3 h 20 min`, `5 d 3 h`."""
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if minutes < 1:
        return f"{max(0, seconds):.0f} s"
    if hours < 1:
        return f"{minutes:.0f} min"
    if days < 1:
        return f"{hours:.0f} h {minutes % 60:.0f} min"
    return f"{days:.0f} d {hours % 24:.0f} h"


def _time(value: datetime | None) -> datetime | None:
    """KFP says 1970 where it means never."""
    if value is None or value.timestamp() <= 0:
        return None
    return value if value.tzinfo else value.replace(tzinfo=UTC)
