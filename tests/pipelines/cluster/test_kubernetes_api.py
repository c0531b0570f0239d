"""Protects looking at Kubernetes: optional, so that whatever is in the way is a reason and no crash."""

import base64
import gzip
import json

import pytest

from pipelines.cluster.kubernetes_api import Blind, CannotLook, Kubernetes, connect
from tests.pipelines.cluster.workflows import Cluster, step_path


@pytest.fixture
def here(kubernetes):
    return Kubernetes("kubeflow")


def test_secrets_and_settings_are_there_or_not(kubernetes, here):
    kubernetes.config_maps["settings"] = {"a": "b"}
    assert here.secret_keys("roboimi-store") == {"access_key", "secret_key"}
    assert here.secret_keys("roboimi-swanlab") is None
    assert here.config_map("settings") == {"a": "b"}
    assert here.config_map("others") is None
    assert here.has_namespace()
    assert not Kubernetes("nowhere").has_namespace()


def test_who_may_not_read_a_namespace_may_read_what_is_in_it(kubernetes, here):
    kubernetes.forbidden.add("/namespaces/kubeflow")
    assert here.has_namespace()
    kubernetes.forbidden.add("/pods")
    with pytest.raises(CannotLook, match="Kubernetes answers 403"):
        here.has_namespace()


def test_only_the_runs_own_pods_are_seen(kubernetes, here):
    mine, theirs = Cluster(kubernetes, "mine"), Cluster(kubernetes, "theirs")
    pod = mine.pod(step_path("train-policy", 0), "Running")
    theirs.pod(step_path("train-policy", 0), "Running")
    assert [item["metadata"]["name"] for item in here.pods("mine")] == [pod["metadata"]["name"]]
    assert len(here.workflow_nodes("mine")) == 1
    assert here.workflow_nodes("nobody's") == []


def test_an_event_without_a_time_is_read(kubernetes, here):
    # The client's model of an event refuses it; Kubernetes writes such.
    event = {"involvedObject": {"name": "pod-1"}, "eventTime": None, "reason": "BackOff"}
    kubernetes.events = [event, {"involvedObject": {"name": "pod-2"}}]
    assert here.events("pod-1") == [event]


def test_a_workflow_that_was_too_large_is_unpacked(kubernetes, here):
    nodes = {"a": {"id": "a", "name": "x"}}
    packed = base64.b64encode(gzip.compress(json.dumps(nodes).encode())).decode()
    labels = {"labels": {"pipeline/runid": "run"}}
    kubernetes.workflows.append({"metadata": labels, "status": {"compressedNodes": packed}})
    assert here.workflow_nodes("run") == [nodes["a"]]


def test_nobody_there_is_a_reason(kubernetes, here):
    kubernetes.__exit__()
    with pytest.raises(CannotLook, match="Kubernetes does not answer"):
        here.pods("run")


@pytest.mark.parametrize("content", [None, "", "apiVersion: v1", ": ["])
def test_no_usable_kubeconfig_is_a_reason(tmp_path, monkeypatch, content):
    path = tmp_path / "kubeconfig"
    if content is not None:
        path.write_text(content)
    monkeypatch.setenv("KUBECONFIG", str(path))
    blind = connect("kubeflow")
    assert isinstance(blind, Blind)
    with pytest.raises(CannotLook, match="no usable kubeconfig"):
        blind.pods("run")


def test_a_context_that_is_not_there_is_a_reason(kubernetes):
    with pytest.raises(CannotLook, match="production"):
        connect("kubeflow", context="production").pods("run")
    assert connect("kubeflow", context="simulated").pods("run") == []


def test_looking_can_be_forbidden(kubernetes):
    with pytest.raises(CannotLook, match="--no-kubernetes"):
        connect("kubeflow", look=False).pods("run")
    assert kubernetes.requests == []
