"""Protects the end of runs: over means over for KFP and for the pods, and what does not end stops nothing beside it."""

import pytest

from pipelines.arguments import TAKE_OVER
from pipelines.cli import main
from pipelines.cluster.campaign_runs import CampaignRun, RunStateError
from pipelines.cluster.kfp_api import KfpApi
from pipelines.cluster.kfp_connection import Connection
from pipelines.cluster.kubernetes_api import Blind, Kubernetes
from pipelines.cluster.stop import end_runs
from pipelines.cluster.supersede import active_runs, supersede
from tests.pipelines.cluster.simulated_kfp import error
from tests.pipelines.cluster.test_campaign_runs import PARAMETERS
from tests.pipelines.cluster.test_submit import REVISION, SUBMIT

OLDER = "roboimi-campaign-0123456-89abcdef-20261120T100000Z"


def pod(run, phase):
    return {"metadata": {"name": f"pod-{phase}", "labels": {"pipeline/runid": run}}, "status": {"phase": phase}}


@pytest.fixture
def api(kfp):
    return KfpApi(Connection(kfp.url))


def run_of(api, key):
    return CampaignRun.of(api.run(key))


def ends(api, kube, key, limit_s=30.0, patience_s=30.0):
    said = []
    times = {"limit_s": limit_s, "patience_s": patience_s, "pause_s": 0.01}
    end_runs(api, kube, [run_of(api, key)], say=said.append, **times)
    return said


def test_a_run_is_over_when_its_pods_are(kfp, kubernetes, api):
    key = kfp.add_run(OLDER, "RUNNING", PARAMETERS)
    kubernetes.pods = [pod(key, "Running"), pod(key, "Succeeded")]
    kubernetes.looks_until_gone = 5
    (line,) = ends(api, Kubernetes("kubeflow"), key)
    assert "KFP says FAILED, no pod of it runs" in line
    # KFP said so after three looks; the pod was still there then.
    assert kubernetes.looks_until_gone < 0
    assert [phase["status"]["phase"] for phase in kubernetes.pods] == ["Succeeded"]


def test_a_pod_that_stays_is_an_error(kfp, kubernetes, api):
    key = kfp.add_run(OLDER, "RUNNING", PARAMETERS)
    kubernetes.pods = [pod(key, "Running")]
    with pytest.raises(RunStateError, match="the pods pod-Running still run"):
        ends(api, Kubernetes("kubeflow"), key, limit_s=0.1)


def test_a_pod_that_cannot_start_is_deleted(kfp, kubernetes, api):
    key = kfp.add_run(OLDER, "RUNNING", PARAMETERS)
    kubernetes.pods = [pod(key, "Pending"), pod(key, "Succeeded")]
    said = ends(api, Kubernetes("kubeflow"), key, patience_s=0.05)
    assert kubernetes.deleted == ["pod-Pending"]
    assert said[0] == "deleted  pod pod-Pending, which could not start"
    assert said[1].startswith("stopped")


def test_a_pod_that_runs_is_never_deleted(kfp, kubernetes, api):
    key = kfp.add_run(OLDER, "RUNNING", PARAMETERS)
    kubernetes.pods = [pod(key, "Pending"), pod(key, "Running")]
    with pytest.raises(RunStateError):
        ends(api, Kubernetes("kubeflow"), key, limit_s=0.3, patience_s=0.05)
    assert kubernetes.deleted == []


def test_who_may_not_delete_is_told(kfp, kubernetes, api):
    key = kfp.add_run(OLDER, "RUNNING", PARAMETERS)
    kubernetes.pods = [pod(key, "Pending")]
    kubernetes.forbidden.add("/pods/pod-Pending")
    with pytest.raises(RunStateError):
        ends(api, Kubernetes("kubeflow"), key, limit_s=0.3, patience_s=0.05)


def test_a_workflow_that_never_closes_is_over_without_pods(kfp, kubernetes, api):
    key = kfp.add_run(OLDER, "RUNNING", PARAMETERS)
    kfp.looks_until_over = 1_000_000
    (line,) = ends(api, Kubernetes("kubeflow"), key, patience_s=0.05)
    assert "KFP says CANCELING, no pod of it runs" in line


def test_a_run_that_stays_is_an_error(kfp, api):
    key = kfp.add_run(OLDER, "RUNNING", PARAMETERS)
    kfp.looks_until_over = 1_000_000
    with pytest.raises(RunStateError, match="KFP says CANCELING after 0 s"):
        ends(api, Blind("not asked"), key, limit_s=0.1)


def test_pods_that_cannot_be_looked_at_are_told(kfp, api):
    key = kfp.add_run(OLDER, "RUNNING", PARAMETERS)
    assert "its pods could not be looked at: no kubeconfig" in ends(api, Blind("no kubeconfig"), key)[0]


def test_a_run_that_ended_by_itself_is_no_error(kfp, api):
    key = kfp.add_run(OLDER, "RUNNING", PARAMETERS)
    run = run_of(api, key)
    kfp.runs[key]["state"] = "SUCCEEDED"
    end_runs(api, Blind("not asked"), [run], say=lambda line: None)
    assert kfp.runs[key]["state"] == "SUCCEEDED"


def test_the_command_says_what_becomes_of_the_training(kfp, kubernetes, capsys):
    key = kfp.add_run(OLDER, "RUNNING", PARAMETERS)
    kfp.looks_until_over = 0
    assert main(["stop", "latest"])
    assert "may be somebody else's" in capsys.readouterr().err
    assert kfp.runs[key]["state"] == "RUNNING"
    assert main(["stop", "latest", "--experiment", "roboimi"]) == 0
    assert "goes on from its last commit" in capsys.readouterr().out
    assert kfp.runs[key]["state"] == "FAILED"
    assert main(["stop", key]) == 0
    assert "has ended already" in capsys.readouterr().out


def test_only_active_runs_of_the_name_are_superseded(kfp, kubernetes, api):
    kfp.looks_until_over = 0
    mine = kfp.add_run(OLDER, "RUNNING", PARAMETERS)
    ended = kfp.add_run(OLDER, "SUCCEEDED", PARAMETERS)
    other = kfp.add_run(OLDER.replace("roboimi-campaign", "another"), "RUNNING", PARAMETERS)
    elsewhere = kfp.add_run(OLDER, "RUNNING", PARAMETERS, experiment="theirs")
    experiment = api.experiment_id("roboimi")
    assert active_runs(api, None, "roboimi-campaign") == []
    gone = supersede(api, Kubernetes("kubeflow"), experiment, "roboimi-campaign", say=lambda line: None)
    assert [run.id for run in gone] == [mine]
    archived = {key for key, run in kfp.runs.items() if run["storage_state"] == "ARCHIVED"}
    assert archived == {mine}
    assert [kfp.runs[key]["state"] for key in (ended, other, elsewhere)] == ["SUCCEEDED", "RUNNING", "RUNNING"]


def test_what_does_not_end_is_not_archived_and_nothing_is_started_beside_it(kfp, kubernetes, api, monkeypatch):
    key = kfp.add_run(OLDER, "RUNNING", PARAMETERS)
    kubernetes.pods = [pod(key, "Running")]
    experiment = api.experiment_id("roboimi")
    with pytest.raises(RunStateError):
        supersede(api, Kubernetes("kubeflow"), experiment, "roboimi-campaign", say=lambda line: None, limit_s=0.1)
    assert kfp.runs[key]["storage_state"] == "AVAILABLE"


def test_a_superseding_campaign_takes_the_trainings_over(kfp, kubernetes, monkeypatch, capsys):
    monkeypatch.setenv("ROBOIMI_REVISION", REVISION)
    older = kfp.add_run(OLDER, "RUNNING", PARAMETERS)
    kfp.looks_until_over = 0
    assert main([*SUBMIT, "--supersede"]) == 0
    newer = next(key for key in kfp.runs if key != older)
    assert TAKE_OVER in kfp.runs[newer]["runtime_config"]["parameters"]["train_overrides"]
    assert kfp.runs[older]["storage_state"] == "ARCHIVED"
    assert f"stopped  {OLDER}" in capsys.readouterr().out
    # With nothing left that is active, another process that trains the same is not robbed.
    kfp.runs[newer]["state"] = "SUCCEEDED"
    assert main([*SUBMIT, "--supersede"]) == 0
    newest = list(kfp.runs)[-1]
    assert TAKE_OVER not in kfp.runs[newest]["runtime_config"]["parameters"]["train_overrides"]
    assert "nothing to supersede" in capsys.readouterr().out


def test_a_campaign_that_cannot_be_stopped_is_not_submitted_beside(kfp, kubernetes, monkeypatch, capsys):
    monkeypatch.setenv("ROBOIMI_REVISION", REVISION)
    older = kfp.add_run(OLDER, "RUNNING", PARAMETERS)
    kfp.refuse[f"{older}:terminate"] = error(500, 13, "Failed to terminate the workflow")
    assert main([*SUBMIT, "--supersede"])
    assert list(kfp.runs) == [older]
    assert "Failed to terminate the workflow" in capsys.readouterr().err
