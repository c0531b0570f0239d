"""Protects what `submit` says a cluster retries: from its workflow controller's settings, or said to be unknown."""

import pytest

from pipelines.cluster.kubernetes_api import Blind, Kubernetes
from pipelines.cluster.retry_policy import CONFIG_MAP, describe, retried_failures

STOCK = "spec:\n  templateDefaults:\n    retryStrategy:\n      limit: '2'\n      retryPolicy: OnError\n"
ALWAYS = STOCK.replace("OnError", "Always")


@pytest.mark.parametrize(
    ("data", "part"),
    [
        ({}, "whose process fails, and not one whose pod is lost"),
        ({"workflowDefaults": STOCK}, "no step whose process fails"),
        ({"workflowDefaults": ALWAYS}, "and one whose pod is lost"),
        ({"config": "workflowDefaults:\n" + "".join(f"  {line}\n" for line in STOCK.splitlines())}, "no step whose"),
        ({"workflowDefaults": "spec: {parallelism: 3}"}, "whose process fails, and not"),
        ({"workflowDefaults": ": ["}, "cannot be understood"),
        ({"workflowDefaults": "a string"}, "whose process fails, and not"),
    ],
)
def test_the_policy_is_that_of_the_template_defaults(data, part):
    assert part in describe(data)


def test_it_is_looked_for_where_kfp_and_where_the_pods_are(kubernetes):
    here = Kubernetes("kubeflow")
    assert "there is no ConfigMap" in retried_failures(here, ["kubeflow", "team"])
    kubernetes.config_maps[CONFIG_MAP] = {"workflowDefaults": STOCK}
    assert "this cluster retries no step" in retried_failures(here, ["kubeflow", "team"])
    kubernetes.forbidden.add(f"/configmaps/{CONFIG_MAP}")
    assert "not known, the workflow controller's ConfigMap cannot be read" in retried_failures(here, ["kubeflow"])
    assert "not known" in retried_failures(Blind("no kubeconfig"), ["kubeflow"])
