"""A server that speaks the part of Kubernetes' API that campaigns look at, and the kubeconfig that leads to it."""

import json
from pathlib import Path
from typing import Any

from tests.pipelines.cluster.simulated_server import Answer, SimulatedServer


def status(code: int, reason: str, message: str) -> Answer:
    """An error as Kubernetes writes it."""
    fields = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure"}
    return Answer(code, {**fields, "message": message, "reason": reason, "code": code})


class SimulatedKubernetes(SimulatedServer):
    """See the module.

    Attributes:
        secrets, config_maps: name -> data, of every namespace.
        namespaces: those that exist.
        pods, events, workflows: as the API gives them.
        forbidden: path endings that the caller may not read.
        looks_until_gone: how often running pods are still seen; None: they stay.
        deleted: names of the pods that were deleted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.namespaces = {"kubeflow"}
        self.secrets = {"roboimi-store": {"access_key": "YQ==", "secret_key": "Yg=="}}
        self.config_maps: dict[str, dict[str, str]] = {}
        self.pods: list[dict[str, Any]] = []
        self.events: list[dict[str, Any]] = []
        self.workflows: list[dict[str, Any]] = []
        self.forbidden: set[str] = set()
        self.looks_until_gone: int | None = None
        self.deleted: list[str] = []

    def kubeconfig(self, folder: Path) -> Path:
        """A file for the variable KUBECONFIG."""
        path = folder / "kubeconfig"
        cluster, context = {"server": self.url}, {"cluster": "simulated", "user": "ann"}
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "simulated",
            "clusters": [{"name": "simulated", "cluster": cluster}],
            "contexts": [{"name": "simulated", "context": context}],
            "users": [{"name": "ann", "user": {}}],
        }
        path.write_text(json.dumps(document))
        return path

    def answer(self, method: str, path: str, query: dict[str, str], body: bytes) -> Any:
        """See `SimulatedServer.answer`."""
        parts = path.strip("/").split("/")
        where = parts.index("namespaces")
        namespace, rest = parts[where + 1], parts[where + 2 :]
        if any(path.endswith(ending) for ending in self.forbidden):
            raise status(403, "Forbidden", f'"{path}" is forbidden: User "ann" cannot read it')
        if not rest:
            return self._one("namespaces", namespace, namespace in self.namespaces)
        if method == "DELETE":
            self.deleted.append(rest[1])
            self.pods = [pod for pod in self.pods if pod["metadata"]["name"] != rest[1]]
            return {}
        if rest[0] == "pods":
            return {"kind": "PodList", "items": self._pods(query)}
        if rest[0] == "events":
            name = query["fieldSelector"].removeprefix("involvedObject.name=")
            chosen = [event for event in self.events if event["involvedObject"]["name"] == name]
            return {"kind": "EventList", "items": chosen}
        if rest[0] == "workflows":
            return {"kind": "WorkflowList", "items": _selected(self.workflows, query)}
        if rest[0] == "secrets":
            return {**self._one("secrets", rest[1], rest[1] in self.secrets), "data": self.secrets[rest[1]]}
        data = self.config_maps.get(rest[1])
        return {**self._one("configmaps", rest[1], data is not None), "data": data}

    def _pods(self, query: dict[str, str]) -> list[dict[str, Any]]:
        if self.looks_until_gone is not None:
            self.looks_until_gone -= 1
            if self.looks_until_gone < 0:
                self.pods = [pod for pod in self.pods if pod["status"]["phase"] in {"Succeeded", "Failed"}]
        return _selected(self.pods, query)

    def _one(self, kind: str, name: str, there: bool) -> dict[str, Any]:
        if not there:
            raise status(404, "NotFound", f'{kind} "{name}" not found')
        return {"apiVersion": "v1", "metadata": {"name": name}}


def _selected(objects: list[dict[str, Any]], query: dict[str, str]) -> list[dict[str, Any]]:
    key, _, value = query.get("labelSelector", "").partition("=")
    return [item for item in objects if not key or item["metadata"].get("labels", {}).get(key) == value]
