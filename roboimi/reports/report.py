"""One self-contained HTML page for a campaign: it opens from disk, and in the sandboxed frame of the KFP UI.

Everything is inline (CSS, SVG, `data:` pictures): the frame has an opaque origin and the reader may have no network.
There is no script. Text from a campaign is escaped by the template.
"""

from __future__ import annotations

import base64
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from roboimi import __version__
from roboimi.reports.arm_data import BLIND, CANDIDATE, CONTROL, ArmReport
from roboimi.reports.campaign_data import CampaignReport
from roboimi.reports.charts import COLOURS, Line, interval_bar, line_chart, seed_cells, stage_bars
from roboimi.reports.findings import first_line, p_text, percent, soundness, standin_note, verdict
from roboimi.reports.settings import SettingComparison
from roboimi.reports.statistics import PairedComparison
from roboimi.reports.step_times import ABSENT, FAILED, KILLED, StepTime
from roboimi.reports.summary import duration, summary_document
from roboimi.storage.store import Store

MOST_PICTURE_BYTES = 3_500_000
"""Of all filmstrips together, before base64, so that the page stays below 5 MB: the KFP UI holds it as one string."""

REPORT = "report.html"

ROLE_WORDS = {CONTROL: "control: told the scene", BLIND: "floor: sees nothing", CANDIDATE: ""}


def write_report(report: CampaignReport, store: Store) -> Path:
    """Write `report.html` and `report.json` into the campaign's folder, replacing earlier ones whole.

    Returns:
        The local path of `report.html`.
    """
    html = render_html(report)
    prefix = f"campaigns/{report.job_id}"
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / REPORT
        page.write_text(html, encoding="utf-8")
        store.put(f"{prefix}/{REPORT}", page)
    store.write_json(f"{prefix}/report.json", summary_document(report))
    return store.fetch(prefix, [REPORT]) / REPORT


def render_html(report: CampaignReport) -> str:
    """The page as one string, below 5 MB."""
    environment = Environment(
        loader=PackageLoader("roboimi.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = environment.loader.get_source(environment, "report.css")[0]
    return environment.get_template("report.html.j2").render(style=Markup(style), version=__version__, **_view(report))


def _view(report: CampaignReport) -> dict[str, Any]:
    """What the template shows, as plain values."""
    colours = _colours(report)
    stages = max((stage for arm in report.arms for stage in arm.stages), default=0)
    return {
        "report": report,
        "first_line": first_line(report),
        "standin_note": standin_note(report),
        "meta": _meta(report),
        "answers": [("Is the pipeline sound?", soundness(report)), ("Which arm is better?", verdict(report))],
        "warnings": [
            *((step.name, warning) for step in _all_steps(report) for warning in step.warnings),
            *((arm.name, note) for arm in report.arms for note in arm.notes),
        ],
        "rows": [_row(arm, colours[arm.name], max(stages, 1)) for arm in report.arms],
        "stages": max(stages, 1),
        "seed_rows": _seed_rows(report, colours),
        "pair_tables": _pair_tables(report),
        "setting_rows": _setting_rows(report, colours),
        "setting_pairs": [_setting_pair(pair) for pair in report.setting_pairs],
        "loss_chart": _loss_chart(report, colours),
        "validation_chart": _validation_chart(report, colours),
        "validation_episodes": max((n for arm in report.arms for *_, n in arm.validation), default=0),
        "strips": _strips(report, colours),
        "dag": _dag(report, colours),
        "facts": _facts(report),
        "arm_facts": [_arm_facts(arm, colours[arm.name]) for arm in report.arms],
    }


def _colours(report: CampaignReport) -> dict[str, int]:
    """The reference arms have the same two colours in every campaign; candidates share the other six in turn."""
    colours = {arm.name: 0 if arm.role == CONTROL else 1 for arm in report.arms if arm.role != CANDIDATE}
    return colours | {arm.name: 2 + index % (COLOURS - 2) for index, arm in enumerate(report.candidates)}


def _all_steps(report: CampaignReport) -> list[StepTime]:
    return [*report.steps, *(step for arm in report.arms for step in arm.steps)]


def _meta(report: CampaignReport) -> str:
    finished = sum(not arm.missing for arm in report.arms)
    parts = [f"{finished} of {len(report.arms)} arms have a result"]
    if report.started_at:
        parts.append(f"{report.started_at[:16].replace('T', ' ')} UTC")
    if report.wall_seconds is not None:
        parts.append(f"took {duration(report.wall_seconds)}")
    if report.gpu_seconds is not None:
        parts.append(f"{duration(report.gpu_seconds)} of GPU time")
    if report.status:
        parts.append(f"ended as {report.status}")
    return " · ".join(parts)


def _row(arm: ArmReport, colour: int, stages: int) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": arm.name,
        "role": ROLE_WORDS[arm.role],
        "overrides": " ".join(arm.overrides),
        "colour": colour,
        "missing": arm.missing.rstrip("."),
    }
    if arm.success is None:
        return row
    success = arm.success
    seconds, steps = arm.training.get("seconds"), arm.training.get("steps")
    return row | {
        "count": f"{success.successes} of {success.episodes}",
        "rate": percent(success.rate) if success.episodes else "",
        "interval": f"({percent(success.low)} to {percent(success.high)})",
        "bar": interval_bar(success, colour) if success.episodes else "",
        "unknown": f"{arm.unknown} more ended unknown" if arm.unknown else "",
        "stages": stage_bars(arm, stages, colour),
        "mean_stage": "–" if arm.mean_stage is None else f"{arm.mean_stage:.1f}",
        "steps": "–" if steps is None else f"{steps:,}",
        "training": "–" if seconds is None else duration(seconds),
        "latency": f"{arm.rollouts['latency_ms']:.0f} ms",
    }


def _seed_rows(report: CampaignReport, colours: Mapping[str, int]) -> list[dict[str, Any]]:
    known = [arm for arm in report.arms if arm.success is not None]
    seeds = sorted({seed for arm in known for seed in arm.rollouts["seeds"]})
    rows = []
    for arm in known:
        unknown = frozenset(arm.rollouts["seeds"]) - arm.outcomes.keys()
        rows.append({"name": arm.name, "cells": seed_cells(arm, seeds, unknown, colours[arm.name])})
    return rows


def _pair_tables(report: CampaignReport) -> list[tuple[str, list[dict[str, Any]]]]:
    tables = [
        ("Checkpoints of the candidates against each other", report.candidate_pairs),
        ("Candidates against the reference arms", report.reference_pairs),
    ]
    return [(title, [_pair(pair) for pair in pairs]) for title, pairs in tables if pairs]


def _pair(pair: PairedComparison) -> dict[str, Any]:
    return {
        "first": pair.first,
        "second": pair.second,
        "only_first": pair.only_first,
        "only_second": pair.only_second,
        "both": pair.both,
        "shared": pair.shared,
        "p": p_text(pair.p_value),
        "p_holm": p_text(pair.p_holm),
        "better": pair.better,
    }


def _setting_rows(report: CampaignReport, colours: Mapping[str, int]) -> list[dict[str, Any]]:
    """Empty where every setting was trained once: the table of the arms says it all then."""
    if not any(len(setting.rates) > 1 for setting in report.settings):
        return []
    return [
        {
            "name": setting.name,
            "colours": [colours[name] for name in setting.arms],
            "rate": percent(setting.rate) if setting.rates else "no result",
            "rates": ", ".join(percent(rate) for rate in setting.rates),
            "trainings": len(setting.rates),
            "missing": ", ".join(setting.missing),
        }
        for setting in report.settings
    ]


def _setting_pair(pair: SettingComparison) -> dict[str, Any]:
    return {
        "first": pair.first,
        "second": pair.second,
        "difference": f"{100 * pair.difference:+.1f}",
        "interval": f"{100 * pair.low:+.0f} to {100 * pair.high:+.0f}",
        "detectable": f"{100 * pair.detectable:.0f}",
        "p": p_text(pair.p_value),
        "p_holm": p_text(pair.p_holm),
        "better": pair.better,
    }


def _loss_chart(report: CampaignReport, colours: Mapping[str, int]) -> Markup:
    lines = [Line(colours[arm.name], arm.name, arm.loss) for arm in report.arms]
    return line_chart(lines, label="Training loss of each arm", x_label="training step", logarithmic=True)


def _validation_chart(report: CampaignReport, colours: Mapping[str, int]) -> Markup:
    lines = [
        Line(
            colours[arm.name],
            arm.name,
            [(step, good / episodes) for step, good, episodes in arm.validation if episodes],
        )
        for arm in report.arms
    ]
    return line_chart(lines, label="Success of rollouts during training", x_label="training step", marks=True)


def _strips(report: CampaignReport, colours: Mapping[str, int]) -> list[dict[str, Any]]:
    strips, room = [], MOST_PICTURE_BYTES
    for arm in report.arms:
        for strip in arm.filmstrips:
            entry = {"arm": arm.name, "kind": strip.kind, "seed": strip.seed, "colour": colours[arm.name]}
            entry |= {"source": "", "reason": strip.reason}
            if strip.image and len(strip.image) <= room:
                room -= len(strip.image)
                entry["source"] = f"data:image/webp;base64,{base64.b64encode(strip.image).decode()}"
            elif strip.image:
                place = f"{arm.prefixes['rollouts']}/filmstrip_{strip.kind}.webp"
                entry["reason"] = f"Left out to keep this page small; it is {place} in the store."
            strips.append(entry)
    return strips


def _dag(report: CampaignReport, colours: Mapping[str, int]) -> dict[str, Any]:
    longest = max((step.seconds or 0.0 for step in _all_steps(report)), default=0.0)
    total = sum(step.seconds or 0.0 for step in _all_steps(report))
    return {
        "shared": [_node(step, longest) for step in report.steps],
        "arms": [
            {
                "name": arm.name,
                "colour": colours[arm.name],
                "steps": [_node(step, longest) for step in arm.steps],
            }
            for arm in report.arms
        ],
        "note": f"Bars: share of the longest step. All steps together: {duration(total)}. A step without a record did "
        "not run in this campaign, or was skipped by a cache.",
    }


def _node(step: StepTime, longest: float) -> dict[str, Any]:
    time = "" if step.seconds is None else duration(step.seconds)
    mark = {FAILED: "failed", KILLED: "killed", ABSENT: "no record"}.get(step.status, "")
    if step.recognised and not mark:
        mark = "found finished"
    return {
        "name": step.name,
        "status": step.status,
        "title": step.result,
        "time": " · ".join(part for part in (mark, time) if part),
        "share": round(100 * (step.seconds or 0.0) / longest) if longest else 0,
    }


def _facts(report: CampaignReport) -> list[tuple[str, str]]:
    revisions = ", ".join(report.revisions) or "not recorded"
    if len(report.revisions) > 1:
        revisions += " (more than one: steps ran different code)"
    return [
        ("dataset", report.data.reference or "not recorded"),
        ("dataset sha256", report.data.digest or "not recorded"),
        ("encoder", report.encoder.name or "not recorded"),
        ("encoder sha256", report.encoder.digest or "not recorded"),
        ("git revision", revisions),
        ("run id", report.job_id),
    ]


def _arm_facts(arm: ArmReport, colour: int) -> dict[str, Any]:
    seeds = arm.rollouts.get("seeds") or []
    facts = [
        ("overrides", " ".join(arm.overrides) or "none"),
        ("training", arm.prefixes.get("training") or "none"),
        ("policy sha256", arm.training.get("policy_digest") or "none"),
        ("rollouts", arm.prefixes.get("rollouts") or "none"),
        ("seeds", f"{seeds[0]} to {seeds[-1]}" if seeds else "none"),
        ("Ta, NFE", f"{arm.rollouts['num_action_steps']}, {arm.rollouts['num_inference_steps']}" if seeds else "none"),
        ("renderer", arm.rollouts.get("renderer") or "nothing was rendered"),
        ("workers", _workers(arm.rollouts.get("workers"))),
        ("time", _shares(arm.rollouts.get("timing") or {})),
        ("videos", _videos(arm)),
    ]
    config = arm.training.get("config")
    text = json.dumps(config, indent=1, sort_keys=True) if config else ""
    return {"name": arm.name, "colour": colour, "facts": facts, "config": text}


def _workers(facts: Mapping[str, int] | None) -> str:
    if not facts:
        return "none: rolled out in one process"
    lost = [f"{facts[name]} {name}" for name in ("hung", "died") if facts[name]]
    return f"{facts['asked']}" + (f", {' and '.join(lost)}, {facts['left']} at the end" if lost else "")


def _shares(seconds: Mapping[str, float]) -> str:
    """The timing breakdown of all episodes, as shares."""
    total = sum(seconds.values())
    names = {"observe_s": "rendering", "preprocess_s": "resizing", "encode_s": "tower", "head_s": "head"}
    names["step_s"] = "physics"
    return ", ".join(f"{names[key]} {percent(value / total)}" for key, value in seconds.items()) if total else "none"


def _videos(arm: ArmReport) -> str:
    """Where they lie: too large for a page that the KFP UI holds as one string."""
    videos = arm.rollouts.get("videos") or []
    places = [f"{arm.prefixes['rollouts']}/{video['file']}" for video in videos if "file" in video]
    reasons = sorted({f"not drawn: {video['reason']}" for video in videos if "reason" in video})
    return ", ".join(places + reasons) or "none"
