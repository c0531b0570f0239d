"""The comparison as a small Markdown table, for places that show no HTML."""

from __future__ import annotations

import re

from roboimi.reports.arm_data import BLIND, CANDIDATE, CONTROL, ArmReport
from roboimi.reports.campaign_data import CampaignReport
from roboimi.reports.findings import first_line, percent, soundness, standin_note, verdict

ROLE_WORDS = {CONTROL: " (control)", BLIND: " (floor)", CANDIDATE: ""}


def render_markdown(report: CampaignReport) -> str:
    """First line, the two answers, and one row an arm. Text from the campaign is escaped."""
    sound, better = soundness(report), verdict(report)
    lines = [
        _plain(first_line(report)),
        "",
        *([_plain(standin_note(report)), ""] if report.encoder.is_standin else []),
        f"**Is the pipeline sound?** {_plain(sound.headline)}",
        "",
        f"**Which arm is better?** {_plain(better.headline)}",
        "",
        "| arm | success | 95 % interval | mean stage |",
        "|---|---|---|---|",
        *(_row(arm) for arm in report.arms),
        "",
    ]
    return "\n".join(lines)


def _row(arm: ArmReport) -> str:
    name = _plain(arm.name) + ROLE_WORDS[arm.role]
    if arm.success is None:
        return f"| {name} | no result | {_plain(arm.missing)} | |"
    success = arm.success
    stage = "" if arm.mean_stage is None else f"{arm.mean_stage:.1f}"
    unknown = f", {arm.unknown} unknown" if arm.unknown else ""
    interval = f"{percent(success.low)} to {percent(success.high)}"
    return f"| {name} | {success.successes} of {success.episodes}{unknown} | {interval} | {stage} |"


def _plain(text: str) -> str:
    """Text that Markdown and HTML take as nothing but text."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]#|])", r"\\\1", text)
