"""Protects the exit task: a report whatever happened, and an arm that died is in it with its reason."""

import pytest
from kfp import dsl

from components.compare_experiments.component import compare_experiments
from roboimi.errors import NonFiniteError
from roboimi.storage.launch_record import launch_record

EXPERIMENTS = [{"arm": "wide", "overrides": ["backbone.per_view_output_dim=192"]}, {"arm": "never", "overrides": []}]


@pytest.fixture
def outputs(artifact):
    return {
        "report": artifact(dsl.HTML, "report"),
        "summary": artifact(dsl.Markdown, "summary"),
        "metrics": artifact(dsl.Metrics, "metrics"),
    }


def run(store, outputs, state):
    status = dsl.PipelineTaskFinalStatus(
        state=state, pipeline_job_resource_name="p", pipeline_task_name="t", error_code=None, error_message=None
    )
    compare_experiments.python_func(EXPERIMENTS, store.uri, "job", status, **outputs)
    return store.read_json("campaigns/job/campaign/compare.json")


def test_dead_arms_are_named_with_their_reason(store, outputs):
    with pytest.raises(NonFiniteError), launch_record(store, "job", "wide", "train"):
        raise NonFiniteError("11 of 40 updates had a loss that is not finite: lower train.learning_rate.")
    record = run(store, outputs, "FAILED")
    assert record["status"] == "succeeded"
    assert record["result"] == "0 of 2 arms have a result"
    with open(outputs["report"].path) as file:
        page = file.read()
    assert "lower train.learning_rate" in page
    assert "never" in page
    assert page == (store.fetch("campaigns/job") / "report.html").read_text()
    with open(outputs["summary"].path) as file:
        assert "wide" in file.read()
    assert outputs["metrics"].metadata["missing_arms"] == 2.0


def test_a_campaign_that_never_began_still_has_a_report(store, outputs):
    assert run(store, outputs, "FAILED")["status"] == "succeeded"
    assert (store.fetch("campaigns/job") / "report.json").is_file()
