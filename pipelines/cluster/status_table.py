"""What a person or a program is shown of campaigns: tables for a terminal, JSON for everything else."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import takewhile
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from pipelines.cluster.campaign_runs import CampaignRun, duration
from pipelines.cluster.status import CampaignStatus, StepStatus

PLAIN_WIDTH = 220
"""Where there is no terminal to ask, rich would fold everything to 80 columns."""
WIDE = 300

COLOURS = {
    "done": "green",
    "cached": "green",
    "running": "cyan",
    "failed": "red",
    "pending": "yellow",
    "stopped": "red",
}


@dataclass(frozen=True)
class CampaignLine:
    """One campaign of the list.

    Attributes:
        run: as KFP has it.
        arms_done: arms that were evaluated; None where the store could not be read.
    """

    run: CampaignRun
    arms_done: int | None


def make_console(width: int | None = None) -> Console:
    """A console that folds at the terminal's width, and late where there is none."""
    console = Console(width=width)
    return console if console.is_terminal or width else Console(width=PLAIN_WIDTH)


def list_table(lines: Sequence[CampaignLine]) -> RenderableType:
    """The campaigns, newest first."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("name", "state", "arms", "age", "run id"):
        table.add_column(title, no_wrap=title in {"state", "arms", "age", "run id"}, overflow="fold")
    for line in lines:
        run = line.run
        done = "?" if line.arms_done is None else str(line.arms_done)
        table.add_row(escape(run.name), _state(run.state), f"{done}/{len(run.arms)}", run.age(), run.id)
    return table


def run_table(status: CampaignStatus, page: str, width: int = PLAIN_WIDTH) -> RenderableType:
    """One campaign, step by step, and below it what is wrong and what could not be seen.

    Args:
        status: how it stands.
        page: URL of the run.
        width: of the console; most have no room for what the names of all pods begin with.
    """
    run = status.run
    common = _common_beginning([step.pod for step in status.steps]) if width < WIDE else ""
    begun = run.created_at.strftime("%Y-%m-%d %H:%M UTC") if run.created_at else "?"
    heading = Text(f"{run.name}  {run.state}  since {begun} ({run.age()})  run {run.id}\n{page}")
    if common:
        heading.append(f"\npods {common}…")
    table = Table(box=None, pad_edge=False, header_style="bold")
    columns = {
        "step": lambda step: escape(step.step),
        "arm": lambda step: escape(step.arm),
        "state": lambda step: _state(step.state),
        "elapsed": lambda step: "" if step.seconds is None else duration(step.seconds),
        "checkpoint": lambda step: "" if step.checkpoint is None else str(step.checkpoint),
        "last metric": lambda step: escape(step.metric),
        "pod": lambda step: escape(f"…{step.pod.removeprefix(common)}" if common and step.pod else step.pod),
        "node": lambda step: escape(step.node),
        "GPU": lambda step: escape(step.gpu),
        "SwanLab": lambda step: escape(step.tracking),
        "failure": lambda step: escape(step.failure_class),
    }
    always = {"step", "arm", "state", "elapsed"}
    # A column that nobody fills would take the width that pods' names need.
    shown = {
        title: cell for title, cell in columns.items() if title in always or any(cell(step) for step in status.steps)
    }
    for title in shown:
        if title == "last metric":
            table.add_column(title, no_wrap=True, overflow="ellipsis", max_width=60)
        else:
            table.add_column(title, no_wrap=title in always, overflow="fold")
    for step in status.steps:
        table.add_row(*(cell(step) for cell in shown.values()))
    below = [Text(reason_line(step), style=COLOURS.get(step.state, "")) for step in status.steps if step.reason]
    notes = [Text(f"note: {note}", style="dim") for note in status.notes]
    return Group(heading, table, *below, *notes)


def reason_line(step: StepStatus) -> str:
    """Which step stands or failed, and why."""
    again = {True: " Running it again can help.", False: " Running it again cannot help.", None: ""}[step.retryable]
    reason = step.reason if step.reason.endswith((".", "!", "…")) else f"{step.reason}."
    return f"{step.name} {step.state}, {step.failure_class}: {reason}{again if step.state == 'failed' else ''}"


def list_json(lines: Sequence[CampaignLine]) -> str:
    """The campaigns for a program."""
    return _json([{**_run(line.run), "arms_done": line.arms_done} for line in lines])


def run_json(status: CampaignStatus, page: str) -> str:
    """One campaign for a program: the run, its steps with all that is known of them, and the notes."""
    return _json(
        {**_run(status.run), "page": page, "steps": [asdict(step) for step in status.steps], "notes": status.notes}
    )


def _common_beginning(pods: Sequence[str]) -> str:
    """What the names of several pods have in common, up to a dash; "" for fewer than two."""
    names = {pod for pod in pods if pod}
    if len(names) < 2:
        return ""
    columns = zip(*(name.split("-") for name in names), strict=False)
    return "-".join(parts[0] for parts in takewhile(lambda parts: len(set(parts)) == 1, columns))


def _run(run: CampaignRun) -> dict[str, Any]:
    return {
        "run": run.id,
        "name": run.name,
        "state": run.state,
        "active": run.active,
        "created_at": _iso(run.created_at),
        "finished_at": _iso(run.finished_at),
        "arms": run.arms,
        "store": run.store,
        "dataset": run.parameters.get("dataset"),
        "code_revision": run.parameters.get("code_revision"),
    }


def _iso(time: datetime | None) -> str | None:
    return None if time is None else time.astimezone(UTC).isoformat(timespec="seconds")


def _json(document: Any) -> str:
    return json.dumps(document, indent=1)


def _state(state: str) -> str:
    colour = COLOURS.get(state, {"SUCCEEDED": "green", "FAILED": "red", "RUNNING": "cyan"}.get(state, ""))
    return f"[{colour}]{escape(state)}[/{colour}]" if colour else escape(state)
