"""Protects what `status` says: every step of every arm, from whatever could be looked at, and what could not be."""

import json
import signal
import subprocess
import sys
from datetime import UTC, datetime

import pytest

from pipelines.cli import main
from pipelines.cluster.campaign_runs import CampaignRun, find_run
from pipelines.cluster.kfp_api import KfpApi
from pipelines.cluster.kfp_connection import Connection
from pipelines.cluster.kubernetes_api import Blind, Kubernetes
from pipelines.cluster.status import StatusReader
from roboimi.errors import DataError, NonFiniteError
from roboimi.storage.launch_record import CAMPAIGN, launch_record, record_key
from roboimi.storage.store import open_store
from roboimi.vla.training.latest import Latest
from roboimi.vla.training.metrics import FILE as METRICS
from roboimi.vla.training.records import TRACKING
from tests.pipelines.cluster.workflows import PARAMETERS, Cluster, step_path

RUN = "roboimi-campaign-0123456-89abcdef-20261121T100000Z"
ID = "workflows.argoproj.io/node-id"
FAILED = {"failure_class": NonFiniteError.failure_class, "retryable": False}
TRAINING = "trainings/0123456789abcdef"
CHECKPOINT = "00000200-e1-0123abcd"


@pytest.fixture
def store(tmp_path):
    return open_store(tmp_path / "store")


@pytest.fixture
def run_id(kfp):
    return kfp.add_run(RUN, "RUNNING", PARAMETERS)


@pytest.fixture
def cluster(kubernetes, run_id):
    return Cluster(kubernetes, run_id)


@pytest.fixture
def read(kfp, kubernetes, store, run_id):
    """`read()`: the status by "step arm"; `read(look=False)`: without Kubernetes."""
    api = KfpApi(Connection(kfp.url))

    def of(look=True, store=store):
        kube = Kubernetes("kubeflow") if look else Blind("--no-kubernetes was given")
        status = StatusReader(kube, store).read(CampaignRun.of(api.run(run_id)))
        return {step.name: step for step in status.steps}, status

    return of


def record(store, run_id, arm, step, **fields):
    """A record that a pod wrote; with `status` succeeded or failed it is over."""
    base = {"job_id": run_id, "arm": arm, "step": step, "status": "running", "pid": 7, "host": "pod-host"}
    started = "2026-11-21T10:00:00+00:00"
    store.write_json(record_key(run_id, arm, step), base | {"started_at": started} | fields)


def test_a_campaign_that_has_not_begun_waits_everywhere(read):
    steps, status = read()
    assert {step.state for step in steps.values()} == {"waiting"}
    assert len(steps) == 15
    assert "has nothing of this run in namespace 'kubeflow'" in status.notes[0]


def test_a_wrong_namespace_is_told(kfp, kubernetes, run_id, capsys):
    assert main(["status", run_id, "--namespace", "nowhere"]) == 0
    assert "there is no namespace 'nowhere'" in capsys.readouterr().out


def test_each_source_gives_its_part(read, cluster, store, run_id):
    cluster.step(step_path("validate-dataset"), "Succeeded", cached=True)
    cluster.step(step_path("train-policy", 0), "Running")
    pod = cluster.pod(step_path("train-policy", 0), "Running")
    record(store, run_id, "wide", "train", pod=pod["metadata"]["name"], training=TRAINING)
    folder = store.folder(f"{TRAINING}/checkpoints/{CHECKPOINT}")
    lines = [{"kind": "train", "step": 200, "loss": 0.25}, {"kind": "rollout", "step": 200, "success_rate": 0.5}]
    (folder / METRICS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    store.publish(f"{TRAINING}/checkpoints/{CHECKPOINT}", "MANIFEST.json", {})
    Latest(store, TRAINING).point_at(CHECKPOINT, 200, 1)
    store.write_json(f"{TRAINING}/{TRACKING}", {"url": "https://swanlab.example.org/run/1"})
    steps, status = read()
    assert status.notes == []
    assert steps["validate"].state == "cached"
    train = steps["train wide"]
    assert (train.state, train.node, train.gpu) == ("running", "gpu-node-1", "1 gpu")
    assert train.pod == pod["metadata"]["name"]
    assert train.tracking == "https://swanlab.example.org/run/1"
    assert (train.checkpoint, train.metric) == (200, "loss 0.2500, success 50%")
    started = datetime.fromisoformat(cluster.nodes[pod["metadata"]["annotations"][ID]]["startedAt"])
    assert abs(train.seconds - (datetime.now(UTC) - started).total_seconds()) < 60
    assert steps["train narrow"].state == "waiting"


def test_a_failed_step_says_what_its_record_says(read, cluster, store, run_id):
    cluster.step(step_path("train-policy", 0), "Failed")
    cluster.pod(step_path("train-policy", 0), "Failed", said="Error (exit code 1)")
    sentence = "Step 3 has a loss that is not finite: lower the learning rate."
    record(store, run_id, "wide", "train", status="failed", reason=sentence, **FAILED)
    step = read()[0]["train wide"]
    assert (step.state, step.failure_class, step.retryable, step.reason) == ("failed", "non-finite", False, sentence)


def test_a_record_of_an_earlier_attempt_says_nothing_of_this_one(read, cluster, store, run_id):
    path = step_path("train-policy", 0)
    cluster.step(path, "Running")
    first = cluster.pod(path, "Failed", attempt=0)
    cluster.pod(path, "Running", attempt=1)
    name = first["metadata"]["name"]
    record(store, run_id, "wide", "train", status="failed", reason="An old one.", pod=name, **FAILED)
    step = read()[0]["train wide"]
    assert (step.state, step.reason, step.failure_class) == ("running", "", "")
    cluster.node(path, "Failed")
    cluster.pod(path, "Failed", attempt=2, said="OOMKilled (exit code 137)")
    step = read()[0]["train wide"]
    assert (step.state, step.failure_class) == ("failed", "oom-killed")


def test_a_killed_process_is_told_though_it_wrote_nothing(read, cluster, store, run_id):
    cluster.step(step_path("train-policy", 1), "Failed")
    cluster.pod(step_path("train-policy", 1), "Failed", said="Error (exit code 1)")
    record(store, run_id, "narrow", "train")
    step = read()[0]["train narrow"]
    assert (step.state, step.failure_class, step.retryable) == ("failed", "killed", True)
    assert "without a word" in step.reason


def test_a_driver_that_failed_is_told(read, cluster):
    cluster.node(f"{step_path('smoke-test-encoder')}-driver", "Error", "Pod", message="inputs do not resolve")
    step = read()[0]["smoke"]
    assert (step.state, step.failure_class) == ("failed", "driver")
    assert "inputs do not resolve" in step.reason


def test_a_stopped_run_did_not_fail_by_itself(read, cluster, kfp, run_id):
    kfp.runs[run_id]["state"] = "FAILED"
    path = step_path("train-policy", 0)
    cluster.node(path, "Failed", message="Stopped with strategy 'Terminate'")
    cluster.pod(path, "Failed", said="Stopped with strategy 'Terminate'")
    steps, _ = read()
    assert steps["train wide"].state == "stopped"
    assert steps["evaluate wide"].state == "not run"


def test_without_kubernetes_kfp_and_the_records_tell(read, kfp, store, run_id):
    states = {"validate-dataset": "SUCCEEDED", "smoke-test-encoder": "RUNNING", "preflight-gpu": "FAILED"}
    tasks = [{"display_name": name, "state": state} for name, state in states.items()]
    # Two tasks of one name: which of them is which arm's, KFP does not say.
    tasks += [{"display_name": "train-policy", "state": state} for state in ("FAILED", "RUNNING")]
    tasks += [{"display_name": "evaluate-policy", "state": "PENDING"}] * 2
    kfp.runs[run_id]["run_details"] = {"task_details": tasks}
    record(store, run_id, "wide", "train", status="failed", reason="It broke.", **FAILED)
    steps, status = read(look=False)
    assert [steps[name].state for name in ("validate", "smoke", "preflight")] == ["done", "running", "failed"]
    assert steps["train wide"].state == "failed"
    assert steps["train narrow"].state == "waiting"
    assert steps["evaluate wide"].state == "pending"
    assert status.notes == ["pods are not looked at: --no-kubernetes was given"]
    # All that there were of a kind succeeded, but not all have been: those of an arm that died never will.
    kfp.runs[run_id]["run_details"]["task_details"] = [{"display_name": "evaluate-shard", "state": "SUCCEEDED"}] * 2
    assert read(look=False)[0]["evaluate-1-of-2 narrow"].state == "waiting"


def test_steps_that_never_came_are_not_taken_for_those_of_another_arm(read, kfp, cluster, run_id):
    kfp.runs[run_id]["state"] = "FAILED"
    kfp.runs[run_id]["run_details"] = {"task_details": [{"display_name": "evaluate-shard", "state": "SUCCEEDED"}] * 4}
    for shard in (0, 1):
        cluster.step(step_path("evaluate-shard", 0, shard), "Succeeded")
        cluster.pod(step_path("evaluate-shard", 0, shard), "Succeeded")
    steps, _ = read()
    assert [steps[f"evaluate-1-of-2 {arm}"].state for arm in ("wide", "narrow")] == ["done", "not run"]


def test_what_cannot_be_looked_at_is_told(read, cluster, kubernetes):
    kubernetes.forbidden.add("/pods")
    steps, status = read(store="there is no key for the object store")
    assert {step.state for step in steps.values()} == {"waiting"}
    assert status.notes[0] == "launch records are not read: there is no key for the object store"
    assert status.notes[1].startswith("pods are not looked at: Kubernetes answers 403")


def test_records_alone_tell_of_a_run_whose_pods_are_long_gone(read, kfp, store, run_id):
    kfp.runs[run_id]["state"] = "FAILED"
    with launch_record(store, run_id, CAMPAIGN, "validate") as made:
        made["result"] = "3 episodes"
    with pytest.raises(DataError), launch_record(store, run_id, "wide", "train"):
        raise DataError("Episode 3 is damaged: push it again.")
    record(store, run_id, "narrow", "train")
    steps, _ = read()
    assert (steps["validate"].state, steps["validate"].metric) == ("done", "3 episodes")
    assert (steps["train wide"].state, steps["train wide"].failure_class) == ("failed", "bad-data")
    assert (steps["train narrow"].state, steps["train narrow"].failure_class) == ("failed", "killed")


def test_the_command_lists_campaigns_with_their_arms(kfp, kubernetes, store, run_id, capsys):
    record(store, run_id, "wide", "evaluate", status="succeeded")
    assert main(["status", "--store", str(store.uri)]) == 0
    out = capsys.readouterr().out
    assert "1/2" in out
    assert run_id in out
    assert main(["status", "--store", str(store.uri), "--json"]) == 0
    (campaign,) = json.loads(capsys.readouterr().out)
    assert (campaign["run"], campaign["state"], campaign["arms_done"]) == (run_id, "RUNNING", 1)


def test_the_command_says_when_there_is_none(kfp, kubernetes, capsys):
    assert main(["status"]) == 0
    assert capsys.readouterr().out == f"no campaigns on {kfp.url}\n"


def test_the_command_shows_one_campaign_as_a_table_and_as_json(kfp, kubernetes, cluster, store, run_id, capsys):
    cluster.step(step_path("train-policy", 0), "Failed")
    cluster.pod(step_path("train-policy", 0), "Failed")
    record(store, run_id, "wide", "train", status="failed", reason="Not [finite]: lower it.", **FAILED)
    assert main(["status", run_id[:8], "--store", str(store.uri)]) == 0
    out = capsys.readouterr().out
    # Square brackets are the user's, not markup.
    assert "train wide failed, non-finite: Not [finite]: lower it. Running it again cannot help." in out
    assert max(map(len, out.splitlines())) <= 220
    assert main(["status", run_id, "--json", "--store", str(store.uri)]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["page"] == f"{kfp.url}/#/runs/details/{run_id}"
    (train,) = [step for step in document["steps"] if (step["step"], step["arm"]) == ("train", "wide")]
    assert (train["failure_class"], train["retryable"]) == ("non-finite", False)


def test_a_reader_that_has_seen_enough_is_no_error(kfp, run_id, tmp_path):
    """As in `status --json | head -1`."""
    command = [
        sys.executable,
        "-m",
        "pipelines",
        "status",
        run_id,
        "--json",
        "--no-kubernetes",
        "--store",
        str(tmp_path),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert (process.wait(60), process.stderr.read()) == (128 + signal.SIGPIPE, "")


def test_a_campaign_submitted_from_the_page_has_its_parameters_only_in_part(kfp, kubernetes, capsys):
    """Experiments and store have defaults in the pipeline, which KFP does not repeat in a run."""
    run_id = kfp.add_run("Run of mine", "RUNNING", {"dataset": "s3://b/d@sha256:0", "dataset_digest": "0"})
    assert find_run(KfpApi(Connection(kfp.url)), "latest").id == run_id
    assert main(["status", "latest", "--once"]) == 0
    assert "validate" in capsys.readouterr().out
