"""Writes a campaign's report anew when one of its arms ends after the report was written.

A retry of a run keeps what succeeded, and the step that writes the report has succeeded: it does not run again. So an
arm that comes to its end only then brings the report up to date itself.
"""

from __future__ import annotations

from typing import Any

from roboimi.reports.campaign_data import CampaignReport, collect
from roboimi.reports.report import write_report
from roboimi.storage.launch_record import CAMPAIGN, record_key
from roboimi.storage.store import Store


def refresh_report(store: Store, job_id: str) -> bool:
    """Write the report again, where there is one.

    Returns:
        Whether there was one. Where two arms end at the same time, the last one to write has seen both.
    """
    document = store.read_json(f"campaigns/{job_id}/report.json")
    if document is None:
        return False
    experiments = [{"arm": arm["arm"], "overrides": arm["overrides"]} for arm in document["arms"]]
    report, written = collect(store, job_id, experiments), None
    while written is None or _endings(report) != _endings(written):
        write_report(report, store)
        report, written = collect(store, job_id, experiments), report
    key = record_key(job_id, CAMPAIGN, "compare")
    record = store.read_json(key)
    if record is not None:
        store.write_json(key, {**record, "result": f"{result_of(report)}; written again after a retry"})
    return True


def result_of(report: CampaignReport) -> str:
    """The report in one clause, for the launch record."""
    return f"{len(report.arms) - len(report.missing)} of {len(report.arms)} arms have a result"


def _endings(report: CampaignReport) -> list[Any]:
    return [(arm.name, arm.missing, arm.success) for arm in report.arms]
