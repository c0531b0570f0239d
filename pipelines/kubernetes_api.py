"""What Kubernetes says of a run: its workflow, pods and events, and a site's secrets and settings.

All of it is optional: somebody who may use KFP need not be let into Kubernetes. Then `CannotLook` says why, in a few
words, and whoever asked goes on with what KFP and the store say. Objects are plain dicts with the API's field names.
"""

import base64
import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

TIMEOUT_S = (5, 30)
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
        except (config.ConfigException, OSError, ValueError) as error:
            raise CannotLook(f"there is no usable kubeconfig ({_line(error)})") from error
        settings.retries = 1
        api = client.ApiClient(settings)
        self._plain = api.sanitize_for_serialization
        self._core = client.CoreV1Api(api)
        self._custom = client.CustomObjectsApi(api)

    def has_namespace(self) -> bool:
        """Whether the namespace exists; True where only its name may not be asked for."""
        try:
            return self._ask(self._core.read_namespace, self.namespace) is not None
        except CannotLook:
            # Who may not read the namespace may still read what is in it.
            self._ask(self._core.list_namespaced_pod, self.namespace, limit=1)
            return True

    def has_secret(self, name: str) -> bool:
        """Whether a secret exists. Its content is not kept."""
        return self._ask(self._core.read_namespaced_secret, name, self.namespace) is not None

    def config_map(self, name: str, namespace: str | None = None) -> dict[str, str] | None:
        """The data of a ConfigMap, or None where there is none."""
        found = self._ask(self._core.read_namespaced_config_map, name, namespace or self.namespace)
        return None if found is None else found.get("data", {})

    def pods(self, run_id: str) -> list[Object]:
        """The pods of a run, KFP's own among them; those of the past as long as Kubernetes keeps them."""
        found = self._ask(
            self._core.list_namespaced_pod, self.namespace, label_selector=f"{RUN_LABEL}={run_id}", limit=2000
        )
        return found["items"] if found else []

    def events(self, pod: str) -> list[Object]:
        """What Kubernetes reported of a pod within the last hour or so."""
        found = self._ask(
            self._core.list_namespaced_event, self.namespace, field_selector=f"involvedObject.name={pod}", limit=200
        )
        return found["items"] if found else []

    def workflow_nodes(self, run_id: str) -> list[Object]:
        """The nodes of a run's Argo workflow; empty where it is gone."""
        found = self._ask(
            self._custom.list_namespaced_custom_object,
            "argoproj.io",
            "v1alpha1",
            self.namespace,
            "workflows",
            label_selector=f"{RUN_LABEL}={run_id}",
        )
        nodes: list[Object] = []
        for workflow in (found or {}).get("items", []):
            status = workflow.get("status", {})
            if packed := status.get("compressedNodes"):
                nodes += json.loads(gzip.decompress(base64.b64decode(packed))).values()
            nodes += (status.get("nodes") or {}).values()
        return nodes

    def _ask(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """The answer as plain data; None where there is no such object."""
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        try:
            return self._plain(function(*arguments, **options, _request_timeout=TIMEOUT_S))
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
