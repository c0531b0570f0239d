"""Protects following a run: a line a step, retries within the budget and never of what is hopeless."""

import json

import pytest
from rich.console import Console

from pipelines.cluster.campaign_runs import CampaignRun
from pipelines.cluster.kfp_api import KfpApi
from pipelines.cluster.kfp_connection import Connection
from pipelines.cluster.kubernetes_api import Kubernetes
from pipelines.cluster.status import StatusReader
from pipelines.cluster.watch import Watcher
from roboimi.storage.store import open_store
from tests.pipelines.cluster.test_retry import HELPABLE, retried
from tests.pipelines.cluster.test_status import FAILED, RUN, record
from tests.pipelines.cluster.workflows import PARAMETERS, Cluster, step_path


@pytest.fixture
def store(tmp_path):
    return open_store(tmp_path / "store")


@pytest.fixture
def key(kfp):
    return kfp.add_run(RUN, "RUNNING", PARAMETERS)


@pytest.fixture
def follow(kfp, kubernetes, store, key, tmp_path):
    """`follow(*changes, retries=0)`: watch, with one change of the world before each look; gives state and lines."""
    api = KfpApi(Connection(kfp.url))

    class Scripted(StatusReader):
        def read(self, run):
            if self.changes:
                self.changes.pop(0)()
            return super().read(CampaignRun.of(api.run(key)))

    def watch(*changes, retries=0):
        reader = Scripted(Kubernetes("kubeflow"), store)
        reader.changes = list(changes)
        with open(tmp_path / "out", "w") as file:
            watcher = Watcher(api, reader, Console(file=file, width=200), retries=retries, pause_s=0)
            status = watcher.follow(key)
        return status.run.state, (tmp_path / "out").read_text().splitlines()

    return watch


def ended(kfp, key, state):
    return lambda: kfp.runs[key].update(state=state)


def test_a_step_is_one_line_when_it_ends(follow, kfp, key, store):
    def trained():
        record(store, key, "wide", "train", status="succeeded", result="200 steps, loss 0.1", seconds=61)

    state, lines = follow(lambda: record(store, key, "wide", "train"), trained, ended(kfp, key, "SUCCEEDED"))
    assert state == "SUCCEEDED"
    assert lines == ["done   train wide                   200 steps, loss 0.1, 61 s"]


def test_a_pod_that_stands_is_told_once(follow, kfp, key, kubernetes):
    cluster = Cluster(kubernetes, key)
    path = step_path("train-policy", 0)
    cluster.step(path, "Running")
    message = "0/1 nodes are available: 1 Insufficient nvidia.com/gpu. preemption: 0/1 nodes are available."
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    cluster.pod(path, "Pending", conditions=[condition])
    _, lines = follow(lambda: None, lambda: None, ended(kfp, key, "FAILED"))
    assert len([line for line in lines if line.startswith("stands   train wide pending, unschedulable")]) == 1


def test_what_can_be_helped_is_retried_within_the_budget(follow, kfp, key, store):
    def failed():
        record(store, key, "wide", "train", status="failed", **HELPABLE)
        kfp.runs[key]["state"] = "FAILED"

    again = [failed, lambda: None] * 3
    state, lines = follow(*again, retries=2)
    assert state == "FAILED"
    assert [line for line in lines if line.startswith("retry")] == [
        "retry    train wide; 1 more if needed",
        "retry    train wide; 0 more if needed",
    ]
    assert len([line for line in lines if line.startswith("failed train wide")]) >= 1


def test_what_is_hopeless_is_not_retried(follow, kfp, key, store):
    record(store, key, "wide", "train", status="failed", reason="Not finite.", **FAILED)
    state, lines = follow(ended(kfp, key, "FAILED"), retries=3)
    assert state == "FAILED"
    assert not retried(kfp, key)
    assert any("cannot help" in line for line in lines)


def test_without_a_budget_nothing_is_retried(follow, kfp, key, store):
    record(store, key, "wide", "train", status="failed", **HELPABLE)
    assert follow(ended(kfp, key, "FAILED"))[0] == "FAILED"
    assert not retried(kfp, key)


def test_a_server_that_is_away_for_a_while_is_waited_for(follow, kfp, key):
    # A page that answers with 503 once, as a proxy does while the server behind it restarts.
    from tests.pipelines.cluster.simulated_kfp import error

    kfp.refuse[key] = error(503, 14, "upstream connect error")
    original = kfp.answer

    def answer(method, path, query, body):
        try:
            return original(method, path, query, body)
        finally:
            kfp.refuse.clear()

    kfp.answer = answer
    state, lines = follow(ended(kfp, key, "SUCCEEDED"))
    assert state == "SUCCEEDED"
    assert [line for line in lines if line.startswith("waiting")]


def test_the_lines_are_plain_text(follow, kfp, key, store):
    record(store, key, "wide", "train", status="failed", **{**HELPABLE, "reason": "Camera 'top' [left] is gone."})
    _, lines = follow(ended(kfp, key, "FAILED"))
    assert "Camera 'top' [left] is gone." in lines[0]
    assert json.dumps(lines)
