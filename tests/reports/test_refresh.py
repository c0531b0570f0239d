"""Protects a report from being of the first attempt: an arm that ends in a retry is in it."""

import pytest

from roboimi.campaign_step import campaign_step
from roboimi.errors import NonFiniteError
from roboimi.reports.campaign_data import collect
from roboimi.reports.refresh import refresh_report
from roboimi.reports.report import write_report


@pytest.fixture
def reported(made):
    """A campaign whose arm `b` had died when the report was written."""
    made.add("a", outcomes=[True, False])
    made.add("b", dies_in="train", error=NonFiniteError("The loss was not finite."))
    made.step("compare")
    write_report(collect(made.store, made.job_id, made.experiments), made.store)
    return made


def document(made):
    return made.store.read_json(f"campaigns/{made.job_id}/report.json")


def test_an_arms_step_that_ends_afterwards_writes_the_report_again(reported):
    assert "non-finite" in document(reported)["arms"][1]["missing"]
    with campaign_step(reported.store.uri, reported.job_id, "train", "b"):
        pass
    assert document(reported)["arms"][1]["missing"] == "evaluate never started"
    with pytest.raises(SystemExit), campaign_step(reported.store.uri, reported.job_id, "evaluate", "b"):
        raise NonFiniteError("Not this time either.")
    assert "Not this time either" in document(reported)["arms"][1]["missing"]
    page = (reported.store.fetch(f"campaigns/{reported.job_id}") / "report.html").read_text()
    assert "Not this time either" in page
    record = reported.store.read_json(f"campaigns/{reported.job_id}/campaign/compare.json")
    assert record["result"] == "1 of 2 arms have a result; written again after a retry"


def test_the_steps_of_the_campaign_itself_and_those_before_the_report_write_none(made):
    made.add("a", outcomes=[True])
    with campaign_step(made.store.uri, made.job_id, "train", "a"):
        pass
    assert document(made) is None
    assert refresh_report(made.store, made.job_id) is False
