"""Protects the sentence for a step that stands or lost its pod: the reason in Kubernetes' words, and what to do."""

import json
from pathlib import Path

import pytest

from pipelines.cli import main
from pipelines.cluster.pod_reasons import node_reason, pod_reason
from tests.pipelines.cluster.test_status import RUN
from tests.pipelines.cluster.workflows import PARAMETERS, Cluster, step_path

# Most are as a Kubernetes 1.34 gave them, without what says nothing here; those for which it would take several nodes
# (taint, preemption, shutdown) and the gate, the sandbox and the devices are written after its documentation.
RECORDED = json.loads((Path(__file__).parent / "recorded_pods.json").read_text())


@pytest.mark.parametrize("name", sorted(RECORDED))
def test_a_recorded_pod_has_its_reason(name):
    case = RECORDED[name]
    found = pod_reason(case["pod"], case.get("events", []))
    assert found is not None
    assert found.kind == case["kind"]
    for part in case["parts"]:
        assert part in found.text
    assert found.text.count(". ") == 0
    assert found.text.endswith(".")


@pytest.mark.parametrize(
    ("message", "kind", "part"),
    [
        (
            'pods "x" is forbidden: exceeded quota: team, requested: requests.nvidia.com/gpu=1, used: '
            "requests.nvidia.com/gpu=2, limited: requests.nvidia.com/gpu=2",
            "quota",
            "exceeded quota: team, requested: requests.nvidia.com/gpu=1",
        ),
        (
            'pods "x" is forbidden: violates PodSecurity "restricted:latest": allowPrivilegeEscalation != false',
            "admission",
            "Pod Security refuses its pod",
        ),
        ('pods "x" is forbidden: maximum memory usage per Container is 8Gi, but limit is 48Gi', "admission", "48Gi"),
        ("pod deleted", "pod-deleted", "retry"),
        ("OOMKilled (exit code 137)", "oom-killed", "raise the limit"),
        ("Pod was active on the node longer than the specified deadline", "timeout", "timeout_s"),
        ("Stopped with strategy 'Terminate'", "stopped", "stopped"),
        ("Step exceeded its deadline", "stopped", "stopped"),
        ("retry exceeded workflow deadline 2026-11-21 21:12:04 +0000 UTC", "stopped", "stopped"),
    ],
)
def test_where_there_is_no_pod_argo_tells(message, kind, part):
    found = node_reason(message)
    assert (found.kind, part in found.text) == (kind, True)


@pytest.mark.parametrize("message", ["", "Error (exit code 1)", "child 'x' failed"])
def test_what_says_nothing_is_no_reason(message):
    assert node_reason(message) is None


@pytest.mark.parametrize("phase", ["Running", "Succeeded"])
def test_a_pod_that_is_well_has_none(phase):
    running = [{"name": "main", "state": {"running": {"startedAt": "2026-11-21T10:00:00Z"}}}]
    assert pod_reason({"metadata": {"name": "x"}, "status": {"phase": phase, "containerStatuses": running}}) is None


def test_a_pod_that_is_cleaned_up_after_its_success_has_none():
    metadata = {"name": "x", "deletionTimestamp": "2026-11-21T10:00:00Z"}
    assert pod_reason({"metadata": metadata, "status": {"phase": "Succeeded"}}) is None


@pytest.mark.parametrize("name", sorted(RECORDED))
def test_status_names_the_step_and_the_reason(kfp, kubernetes, capsys, name):
    case = RECORDED[name]
    cluster = Cluster(kubernetes, kfp.add_run(RUN, "RUNNING", PARAMETERS))
    path, status = step_path("train-policy", 1), case["pod"]["status"]
    cluster.step(path, "Running" if status["phase"] == "Pending" else "Failed")
    pod = cluster.pod(path, **status, said="Error (exit code 1)")
    pod["metadata"] |= {key: value for key, value in case["pod"]["metadata"].items() if key == "deletionTimestamp"}
    kubernetes.events = [
        {**event, "involvedObject": {"kind": "Pod", "name": pod["metadata"]["name"]}}
        for event in case.get("events", [])
    ]
    assert main(["status", "latest", "--once"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("train narrow ")]
    assert case["kind"] in line
    for part in case["parts"]:
        assert part in line


def test_status_tells_of_a_quota_though_there_is_no_pod(kfp, kubernetes, capsys):
    cluster = Cluster(kubernetes, kfp.add_run(RUN, "RUNNING", PARAMETERS))
    path = step_path("train-policy", 0)
    cluster.step(path, "Running")
    message = 'pods "x" is forbidden: exceeded quota: team, requested: pods=1, used: pods=4, limited: pods=4'
    cluster.node(f"{path}.executor(0)", "Pending", "Pod", message=message)
    assert main(["status", "latest", "--once"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("train wide ")]
    assert "train wide pending, quota: its pod may not be made, exceeded quota: team" in line
