"""Which failures a cluster's workflow controller retries by itself: one line from its ConfigMap.

KFP compiles a step's retries to Argo's `retryStrategy` with a limit and a backoff, but without a `retryPolicy`. Argo's
own default for that, `OnFailure`, retries a container that failed. A controller may however have defaults for every
template, which are merged into it: stock KFP 2.17 sets `{limit: '2', retryPolicy: OnError}`, and `OnError` retries
errors of Argo alone, so no failure of a step's own process.
"""

from typing import Any

import yaml

from pipelines.cluster.kubernetes_api import Blind, CannotLook, Kubernetes

CONFIG_MAP = "workflow-controller-configmap"
DEFAULT_POLICY = "OnFailure"

POLICIES = {
    "Always": "a step whose process fails, and one whose pod is lost",
    "OnFailure": "a step whose process fails, and not one whose pod is lost",
    "OnError": "no step whose process fails: `submit --watch` and `retry` do that",
    "OnTransientError": "only transient errors of its own: `submit --watch` and `retry` do the rest",
}


def retried_failures(kubernetes: Kubernetes | Blind, namespaces: list[str]) -> str:
    """What the cluster retries, in one line.

    Args:
        kubernetes: to look.
        namespaces: where the controller's ConfigMap may be, in this order.
    """
    try:
        for namespace in namespaces:
            data = kubernetes.config_map(CONFIG_MAP, namespace)
            if data is not None:
                return describe(data)
    except CannotLook as error:
        return f"not known, the workflow controller's ConfigMap cannot be read: {error}"
    return f"not known, there is no ConfigMap {CONFIG_MAP} in {' or '.join(namespaces)}"


def describe(data: dict[str, str]) -> str:
    """What a controller with this configuration retries.

    Args:
        data: of the ConfigMap; its settings are YAML under `workflowDefaults`, or, in another spelling that Argo knows,
            all of them under `config`.
    """
    try:
        defaults = yaml.safe_load(data.get("workflowDefaults", "")) or {}
        defaults = defaults or (yaml.safe_load(data.get("config", "")) or {}).get("workflowDefaults") or {}
        strategy = _at(defaults, "spec", "templateDefaults", "retryStrategy") or {}
        policy = strategy.get("retryPolicy", DEFAULT_POLICY)
    except (yaml.YAMLError, AttributeError):
        return f"not known, {CONFIG_MAP} cannot be understood"
    if _at(defaults, "spec", "retryStrategy") or strategy.get("expression"):
        extra = " (with further conditions of its own)"
    else:
        extra = ""
    return f"this cluster retries {POLICIES.get(policy, f'by the policy {policy}')}{extra}"


def _at(document: Any, *path: str) -> Any:
    for key in path:
        document = document.get(key) if isinstance(document, dict) else None
    return document
