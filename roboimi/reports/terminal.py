"""The comparison on a terminal."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from roboimi.reports.arm_data import BLIND, CANDIDATE, CONTROL, ArmReport
from roboimi.reports.campaign_data import CampaignReport
from roboimi.reports.findings import BAD, DOUBTFUL, GOOD, first_line, percent, soundness, standin_note, verdict

BAR_WIDTH = 18
COLOUR_OF_LEVEL = {GOOD: "green", DOUBTFUL: "yellow", BAD: "red"}
ROLE_WORDS = {CONTROL: " control", BLIND: " floor", CANDIDATE: ""}


def render_table(report: CampaignReport) -> Table:
    """One row an arm; the title is the report's first line, the caption its answers and why arms are missing."""
    table = Table(box=SIMPLE_HEAD, title=_title(report), caption=_caption(report), padding=(0, 1))
    table.title_justify = table.caption_justify = "left"
    table.add_column("arm", overflow="fold")
    table.add_column("success", justify="right", no_wrap=True)
    table.add_column("0" + " " * (BAR_WIDTH - 6) + "100 %", no_wrap=True)
    table.add_column("95 % interval", no_wrap=True)
    table.add_column("stage", justify="right", no_wrap=True)
    for arm in report.arms:
        table.add_row(*_row(arm))
    return table


def interval_line(low: float, rate: float, high: float, width: int = BAR_WIDTH) -> str:
    """An interval on a scale of `width` characters: `·····──●──········`."""
    cell = [min(width - 1, int(value * width)) for value in (low, rate, high)]
    body = ["─" if cell[0] <= index <= cell[2] else "·" for index in range(width)]
    body[cell[1]] = "●"
    return "".join(body)


def _row(arm: ArmReport) -> tuple[Text | str, ...]:
    name = Text(arm.name).append(ROLE_WORDS[arm.role], style="dim")
    if arm.success is None:
        return name, Text("no result", style="red"), "", "", ""
    success = arm.success
    unknown = f" +{arm.unknown}?" if arm.unknown else ""
    return (
        name,
        f"{success.successes} of {success.episodes}{unknown}",
        interval_line(success.low, success.rate, success.high) if success.episodes else "",
        f"{100 * success.low:.0f} to {percent(success.high)}",
        "" if arm.mean_stage is None else f"{arm.mean_stage:.1f}",
    )


def _title(report: CampaignReport) -> Text:
    text = Text(first_line(report), style="bold")
    note = standin_note(report)
    return text.append(f"\n{note}", style="not bold yellow") if note else text


def _caption(report: CampaignReport) -> Text:
    text = Text(style="not italic not dim")
    for question, finding in (("Sound? ", soundness(report)), ("Better? ", verdict(report))):
        text.append(question, style="bold").append(finding.headline + " ", style=COLOUR_OF_LEVEL[finding.level])
        text.append(finding.sentences[0] if finding.sentences else "").append("\n")
    for arm in report.missing:
        text.append(f"{arm.name} has no result: ", style="bold red").append(f"{arm.missing.rstrip('.')}.\n")
    text.rstrip()
    return text
