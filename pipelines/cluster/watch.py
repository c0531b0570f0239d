"""Follow a run to its end, and retry it where its failures are of the kind that running again can help."""

import time
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape

from pipelines.cluster.campaign_runs import CampaignRun, duration
from pipelines.cluster.kfp_api import KfpApi
from pipelines.cluster.kfp_connection import ServerUnavailableError
from pipelines.cluster.retry import failed_steps, hopeless, retry_run
from pipelines.cluster.status import CampaignStatus, StatusReader, StepStatus
from pipelines.cluster.status_table import reason_line
from pipelines.display import finished_line

SECONDS_BETWEEN_LOOKS = 10.0
PATIENCE_S = 3600.0
"""How long a server may not answer before watching it ends; the run goes on without us."""

ENDED = frozenset({"done", "cached", "failed", "stopped"})


@dataclass
class _Printed:
    """What was shown of one step: its state, and the trouble that keeps it from starting."""

    state: str = ""
    trouble: str = ""


class Watcher:
    """Prints a line when a step ends, or when it stands and why.

    Args:
        api: the server.
        reader: of the run's status.
        console: where lines go.
        retries: how often the run may be retried.
        pause_s: between two looks.
    """

    def __init__(
        self,
        api: KfpApi,
        reader: StatusReader,
        console: Console,
        *,
        retries: int = 0,
        pause_s: float = SECONDS_BETWEEN_LOOKS,
    ):
        self._api, self._reader, self._console = api, reader, console
        self._left, self._pause_s = retries, pause_s
        self._printed: dict[tuple[str, str], _Printed] = {}

    def follow(self, run_id: str) -> CampaignStatus:
        """Watch a run until it has ended and is not retried.

        Raises:
            ServerError: the server refuses, or has not answered for an hour.
        """
        while True:
            status = self._look(run_id)
            self._show(status)
            if not status.run.active and not self._again(status):
                return status
            time.sleep(self._pause_s)

    def _look(self, run_id: str) -> CampaignStatus:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                return self._reader.read(CampaignRun.of(self._api.run(run_id)))
            except ServerUnavailableError as error:
                if time.monotonic() > deadline:
                    raise
                self._say(f"waiting  {error}")
                time.sleep(self._pause_s)

    def _again(self, status: CampaignStatus) -> bool:
        """Whether the run is retried."""
        if status.run.state != "FAILED" or self._left == 0:
            return False
        failed = failed_steps(status)
        if hopeless(failed):
            self._say(f"no retry {failed[0].name} failed in a way that running it again cannot help")
            return False
        self._left -= 1
        retry_run(self._api, status.run)
        names = ", ".join(step.name for step in failed) or "what failed"
        self._say(f"retry    {names}; {self._left} more if needed")
        for step in failed:
            self._printed.pop((step.arm, step.step), None)
        return True

    def _show(self, status: CampaignStatus) -> None:
        records = {(record["arm"], record["step"]): record for record in status.records}
        for step in status.steps:
            printed = self._printed.setdefault((step.arm, step.step), _Printed())
            if step.state in ENDED and printed.state != step.state:
                record = records.get((step.arm or "campaign", step.step))
                self._console.print(_line(step, record), highlight=False, soft_wrap=True)
            elif step.state == "pending" and step.reason and printed.trouble != step.failure_class:
                self._say(f"stands   {reason_line(step)}")
                printed.trouble = step.failure_class
            printed.state = step.state

    def _say(self, text: str) -> None:
        self._console.print(escape(text), highlight=False, soft_wrap=True)


def _line(step: StepStatus, record: dict | None) -> str:
    if step.state == "cached":
        return f"[green]done  [/green] {escape(step.name):<28} from KFP's cache"
    if record is not None and record["status"] != "running" and step.state in {"done", "failed"}:
        return finished_line(record)
    mark = "[green]done  [/green]" if step.state == "done" else f"[red]{step.state:<6}[/red]"
    parts = [step.reason.rstrip("."), "" if step.seconds is None else duration(step.seconds)]
    return f"{mark} {escape(step.name):<28} {escape(', '.join(part for part in parts if part))}"
