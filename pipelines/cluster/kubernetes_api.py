"""What Kubernetes says of a run: its workflow, pods and events, and a site's secrets and settings.

All of it is optional: somebody who may use KFP need not be let into Kubernetes. Then `CannotLook` says why, in a few
words, and whoever asked goes on with what KFP and the store say. Objects are plain dicts with the API's field names.
"""

import base64
import gzip
import json
import os
from pathlib import Path
from typing import Any

import yaml

TIMEOUT_S = (5, 30)
CORE, WORKFLOWS = "/api/v1", "/apis/argoproj.io/v1alpha1"
RUN_LABEL = "pipeline/runid"
"""Label of every pod and workflow of a run, put there by KFP."""

Object = dict[str, Any]


class CannotLook(Exception):
    """Kubernetes cannot be reached or asked; the message is the reason, in a few words."""


class Kubernetes:
    """One namespace of the cluster that the environment leads to: the pod's own, or the kubeconfig's current one.

    Args:
        namespace: where the campaign's pods are.
        context: of the kubeconfig; None: its current one.

    Attributes:
        where: what was asked, for messages.

    Raises:
        CannotLook: there is no configuration that leads to a cluster.
    """

    def __init__(self, namespace: str, context: str | None = None):
        # Importing it takes a second, which only those pay that look.
        from kubernetes import client, config

        self.namespace = namespace
        settings = client.Configuration()
        try:
            try:
                # The library reads the variable once, when it is imported.
                file = os.environ.get("KUBECONFIG") or None
                config.load_kube_config(file, client_configuration=settings, context=context)
                self.where = f"context {context}" if context else "the current context of the kubeconfig"
            except config.ConfigException:
                if context is not None:
                    raise
                config.load_incluster_config(client_configuration=settings)
                self.where = "this pod's cluster"
        except (config.ConfigException, yaml.YAMLError, OSError, ValueError) as error:
            raise CannotLook(f"there is no usable kubeconfig ({_line(error)})") from error
        settings.retries = 1
        self._api = client.ApiClient(settings)

    def has_namespace(self) -> bool:
        """Whether the namespace exists; True where it may not be asked for itself, but for what is in it."""
        try:
            return self._get("") is not None
        except CannotLook:
            self._get("/pods", limit=1)
            return True

    def secret_keys(self, name: str) -> set[str] | None:
        """The keys of a secret, or None where there is none. Their values are not kept."""
        found = self._get(f"/secrets/{name}")
        return None if found is None else set(found.get("data") or {})

    def config_map(self, name: str, namespace: str | None = None) -> dict[str, str] | None:
        """The data of a ConfigMap, or None where there is none."""
        found = self._get(f"/configmaps/{name}", namespace=namespace)
        return None if found is None else found.get("data") or {}

    def pods(self, run_id: str) -> list[Object]:
        """The pods of a run, KFP's own among them; those of the past as long as Kubernetes keeps them."""
        return self._items("/pods", labelSelector=f"{RUN_LABEL}={run_id}")

    def delete_pod(self, name: str) -> None:
        """Delete a pod; one that is gone already is no error."""
        self._call("DELETE", f"/pods/{name}")

    def events(self, pod: str) -> list[Object]:
        """What Kubernetes reported of a pod within the last hour or so."""
        return self._items("/events", fieldSelector=f"involvedObject.name={pod}")

    def workflow_nodes(self, run_id: str) -> list[Object]:
        """The nodes of a run's Argo workflow; empty where it is gone."""
        nodes: list[Object] = []
        for workflow in self._items("/workflows", group=WORKFLOWS, labelSelector=f"{RUN_LABEL}={run_id}"):
            status = workflow.get("status", {})
            if packed := status.get("compressedNodes"):
                nodes += json.loads(gzip.decompress(base64.b64decode(packed))).values()
            nodes += (status.get("nodes") or {}).values()
        return nodes

    def _items(self, path: str, group: str = CORE, **query: Any) -> list[Object]:
        return (self._get(path, group=group, **query) or {}).get("items") or []

    def _get(self, path: str, **where: Any) -> Any:
        return self._call("GET", path, **where)

    def _call(self, method: str, path: str, *, namespace: str | None = None, group: str = CORE, **query: Any) -> Any:
        """What lies at a path of a namespace, as plain data; None where there is no such object.

        The client's own model classes are left out: they refuse what the API allows, such as an event without a time.
        """
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        try:
            return self._api.call_api(
                f"{group}/namespaces/{namespace or self.namespace}{path}",
                method,
                query_params=list(query.items()),
                header_params={"Accept": "application/json"},
                response_type="object",
                auth_settings=["BearerToken"],
                _return_http_data_only=True,
                _request_timeout=TIMEOUT_S,
            )
        except ApiException as error:
            if error.status == 404:
                return None
            raise CannotLook(f"Kubernetes answers {error.status}: {_said(error)}") from error
        except (HTTPError, OSError) as error:
            cause = getattr(error, "reason", None) or error
            raise CannotLook(f"Kubernetes does not answer ({_line(cause)})") from error


class Blind:
    """Stands for a Kubernetes that is not to be looked at, or cannot be: every question gives the reason.

    Args:
        reason: in a few words.
    """

    def __init__(self, reason: str):
        self._reason = reason

    def __getattr__(self, name: str) -> Any:
        raise CannotLook(self._reason)


def connect(namespace: str, *, context: str | None = None, look: bool = True) -> "Kubernetes | Blind":
    """Kubernetes, or the reason why it cannot be looked at."""
    if not look:
        return Blind("--no-kubernetes was given")
    try:
        return Kubernetes(namespace, context)
    except CannotLook as error:
        return Blind(str(error))


def own_namespace() -> str | None:
    """The namespace of the pod that this process runs in, if it runs in one."""
    path = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
    return path.read_text().strip() if path.is_file() else None


def _said(error: Any) -> str:
    try:
        return _line(json.loads(error.body)["message"])
    except (TypeError, ValueError, KeyError):
        return _line(error.reason)


def _line(text: object) -> str:
    return " ".join(str(text).split())[:300]
