"""A campaign's figures without their drawings: a JSON document for programs, and numbers for a metrics table."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from roboimi.reports.arm_data import ArmReport
from roboimi.reports.campaign_data import CampaignReport
from roboimi.reports.findings import first_line, soundness, standin_note, verdict
from roboimi.reports.settings import Setting

SCHEMA = "roboimi.report/2"


def summary_document(report: CampaignReport) -> dict[str, Any]:
    """Everything of the report that is not a picture, as plain JSON values."""
    return {
        "schema": SCHEMA,
        "job_id": report.job_id,
        "status": report.status,
        "first_line": first_line(report),
        "standin": standin_note(report),
        "data": asdict(report.data),
        "encoder": asdict(report.encoder),
        "soundness": asdict(soundness(report)),
        "verdict": asdict(verdict(report)),
        "settings": [_setting_document(setting) for setting in report.settings],
        "setting_pairs": [asdict(pair) | {"better": pair.better} for pair in report.setting_pairs],
        "arms": [_arm_document(arm) for arm in report.arms],
        "pairs": [asdict(pair) for pair in (*report.candidate_pairs, *report.reference_pairs)],
        "steps": [asdict(step) for step in report.steps],
        "revisions": list(report.revisions),
        "started_at": report.started_at,
        "ended_at": report.ended_at,
        "gpu_seconds": report.gpu_seconds,
        "written_at": report.written_at,
    }


def metrics(report: CampaignReport) -> dict[str, float]:
    """Numbers for a table that lays runs side by side: the same names for the same arms; missing arms are left out."""
    values: dict[str, float] = {"arms": float(len(report.arms)), "missing_arms": float(len(report.missing))}
    if report.gpu_seconds is not None:
        values["gpu_seconds"] = report.gpu_seconds
    for setting in report.settings:
        if len(setting.rates) > 1:
            values[f"{setting.name}_mean_success_rate"] = setting.rate
            values[f"{setting.name}_trainings"] = float(len(setting.rates))
    for arm in report.arms:
        if arm.success is not None and arm.success.episodes:
            values[f"{arm.name}_success_rate"] = arm.success.rate
            values[f"{arm.name}_low"] = arm.success.low
            values[f"{arm.name}_high"] = arm.success.high
            values[f"{arm.name}_episodes"] = float(arm.success.episodes)
            values[f"{arm.name}_unknown"] = float(arm.unknown)
    return values


def duration(seconds: float) -> str:
    """Seconds as people say them: `8.0 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s" if whole % 60 else f"{whole // 60} min"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _setting_document(setting: Setting) -> dict[str, Any]:
    return {
        "name": setting.name,
        "arms": list(setting.arms),
        "rates": list(setting.rates),
        "missing": list(setting.missing),
    }


def _arm_document(arm: ArmReport) -> dict[str, Any]:
    return {
        "arm": arm.name,
        "role": arm.role,
        "overrides": list(arm.overrides),
        "missing": arm.missing,
        "success": asdict(arm.success) if arm.success else None,
        "unknown": arm.unknown,
        "mean_stage": arm.mean_stage,
        "outcomes": {str(seed): outcome for seed, outcome in sorted(arm.outcomes.items())},
        "training_seconds": arm.training.get("seconds"),
        "steps_trained": arm.training.get("steps"),
        "policy_digest": arm.training.get("policy_digest"),
        "prefixes": dict(arm.prefixes),
        "steps": [asdict(step) for step in arm.steps],
    }
