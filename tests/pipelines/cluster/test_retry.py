"""Protects retries: only of runs that failed, and not of failures that running again cannot help."""

import pytest

from pipelines.cli import main
from pipelines.cluster.campaign_runs import RunStateError
from roboimi.errors import StoreUnavailableError
from roboimi.storage.store import open_store
from tests.pipelines.cluster.simulated_kfp import error
from tests.pipelines.cluster.test_status import FAILED, RUN, record
from tests.pipelines.cluster.workflows import PARAMETERS

HELPABLE = {"failure_class": StoreUnavailableError.failure_class, "retryable": True, "reason": "No store."}


@pytest.fixture
def store(tmp_path):
    return open_store(tmp_path / "store")


@pytest.fixture
def retry(kfp, kubernetes, store, capsys):
    """`retry(run, ...)`: its exit code, what it printed and its error."""

    def run(key, *arguments):
        code = main(["retry", key, "--store", str(store.uri), *arguments])
        return code, *capsys.readouterr()

    return run


def retried(kfp, key):
    return ("POST", f"/apis/v2beta1/runs/{key}:retry") in kfp.requests


def test_what_failed_is_run_again(kfp, store, retry):
    key = kfp.add_run(RUN, "FAILED", PARAMETERS)
    record(store, key, "wide", "train", status="failed", **HELPABLE)
    code, out, _ = retry(key)
    assert code == 0
    assert "retry    train wide of" in out
    assert kfp.runs[key]["state"] == "RUNNING"


@pytest.mark.parametrize(("state", "part"), [("RUNNING", "is RUNNING"), ("SUCCEEDED", "succeeded: submit a new one")])
def test_a_run_that_did_not_fail_is_left_alone(kfp, retry, state, part):
    key = kfp.add_run(RUN, state, PARAMETERS)
    code, _, sentence = retry(key)
    assert code == RunStateError.exit_code
    assert part in sentence
    assert not retried(kfp, key)


def test_a_hopeless_failure_needs_force(kfp, store, retry):
    key = kfp.add_run(RUN, "FAILED", PARAMETERS)
    record(store, key, "wide", "train", status="failed", reason="Not finite.", **FAILED)
    code, _, sentence = retry(key)
    assert code == RunStateError.exit_code
    assert "train wide (non-finite: Not finite), and running it again cannot help" in sentence
    assert not retried(kfp, key)
    assert retry(key, "--force")[0] == 0
    assert retried(kfp, key)


def test_an_arm_that_can_be_helped_is_worth_it(kfp, store, retry):
    key = kfp.add_run(RUN, "FAILED", PARAMETERS)
    record(store, key, "wide", "train", status="failed", reason="Not finite.", **FAILED)
    record(store, key, "narrow", "train", status="failed", **HELPABLE)
    assert retry(key)[0] == 0


def test_a_run_whose_workflow_is_gone_cannot_be_retried(kfp, retry):
    key = kfp.add_run(RUN, "FAILED", PARAMETERS)
    kfp.refuse[":retry"] = error(500, 13, "Workflow manifest cannot be empty")
    code, _, sentence = retry(key)
    assert code
    assert "Workflow manifest cannot be empty" in sentence
    assert sentence.count("\n") == 1
