"""Pods and workflow nodes of a campaign's run, as Argo and Kubernetes give them, for the simulated servers."""

from typing import Any

from tests.pipelines.cluster.simulated_kubernetes import SimulatedKubernetes

NAME = "roboimi-campaign-x7k2p"
ARMS = ("wide", "narrow")
PARAMETERS = {
    "dataset": "s3://lab/cube@sha256:0",
    "dataset_digest": "0",
    "store": "s3://lab/store",
    "experiments": [{"arm": arm, "overrides": []} for arm in ARMS],
    "encode_shards": ["1/2", "2/2"],
    "eval_shards": ["1/2", "2/2"],
}
EXIT_HANDLER = f"{NAME}.root.exit-handler-1"
LOOP = "for-loop-{number}.iteration-iterations({index}:{index}).iteration-item"


def step_path(step: str, *indices: int) -> str:
    """The name of a step's node: `step_path("train-policy", 1)` is that of the second arm."""
    loops = [LOOP.format(number=2 * depth + 2, index=index) for depth, index in enumerate(indices)]
    return ".".join([EXIT_HANDLER, *loops, step])


class Cluster:
    """Fills a simulated Kubernetes with one run.

    Args:
        kubernetes: to fill.
        run_id: of the run.
    """

    def __init__(self, kubernetes: SimulatedKubernetes, run_id: str):
        self.kubernetes, self.run_id = kubernetes, run_id
        self.nodes: dict[str, dict[str, Any]] = {}
        labels = {"pipeline/runid": run_id}
        status = {"nodes": self.nodes}
        kubernetes.workflows.append({"metadata": {"name": NAME, "labels": labels}, "status": status})

    def node(self, name: str, phase: str, kind: str = "DAG", **fields: Any) -> dict[str, Any]:
        """Add a node of the workflow."""
        number = len(self.nodes)
        key = f"{NAME}-{1000 + number}"
        times = {"startedAt": f"2026-11-21T10:00:{number:02d}Z", "finishedAt": None}
        if phase in {"Succeeded", "Failed", "Error"}:
            times["finishedAt"] = f"2026-11-21T11:00:{number:02d}Z"
        self.nodes[key] = {"id": key, "name": name, "phase": phase, "type": kind, **times, **fields}
        return self.nodes[key]

    def step(self, path: str, phase: str, *, cached: bool = False) -> None:
        """Add a step without pods: its DAG, its driver and, where it was cached, an executor that did not run."""
        self.node(f"{path}-driver", "Succeeded", "Pod")
        self.node(path, phase)
        if cached:
            self.node(f"{path}.executor", "Omitted", "Skipped")

    def pod(self, path: str, phase: str, *, attempt: int = 0, said: str = "", **status: Any) -> dict[str, Any]:
        """Add an attempt of a step and its pod; gives the pod."""
        node_phase = {"Pending": "Pending", "Running": "Running", "Succeeded": "Succeeded"}.get(phase, "Failed")
        node = self.node(f"{path}.executor({attempt})", node_phase, "Pod", message=said)
        pod = {
            "metadata": {
                "name": f"{NAME}-system-container-impl-{node['id'].rpartition('-')[2]}",
                "labels": {"pipeline/runid": self.run_id},
                "annotations": {"workflows.argoproj.io/node-id": node["id"]},
            },
            "spec": {"nodeName": "gpu-node-1", "containers": [{"resources": {"limits": {"nvidia.com/gpu": "1"}}}]},
            "status": {"phase": phase, **status},
        }
        self.kubernetes.pods.append(pod)
        return pod
