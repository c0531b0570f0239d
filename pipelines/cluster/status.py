"""How a campaign on a cluster stands, step by step.

Four sources know parts of it, and each may be out of reach: KFP says which tasks there are and how they stand, the
launch records in the store what a step did and why it failed, the workflow in Kubernetes which pod belongs to which
arm, and pods and events why one does not run. What could not be looked at is told beside what was seen.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from pipelines.cluster.campaign_runs import CampaignRun
from pipelines.cluster.kubernetes_api import Blind, CannotLook, Kubernetes
from pipelines.cluster.pod_reasons import Reason, node_reason, pod_reason, was_stopped
from pipelines.cluster.training_progress import TrainingProgress
from pipelines.cluster.workflow_nodes import StepNodes, step_nodes
from pipelines.display import Record, read_records
from pipelines.expected_steps import ExpectedStep, expected_steps
from roboimi.errors import StoreError
from roboimi.storage.launch_record import CAMPAIGN
from roboimi.storage.store import Store

Object = dict[str, Any]

NODE_ID = "workflows.argoproj.io/node-id"
"""Argo's annotation of every pod."""

KFP_STATES = {
    "SUCCEEDED": "done",
    "FAILED": "failed",
    "RUNNING": "running",
    "PENDING": "pending",
    "SKIPPED": "not run",
    "CANCELED": "stopped",
}
NODE_STATES = {"Succeeded": "done", "Failed": "failed", "Error": "failed", "Skipped": "not run", "Omitted": "not run"}


@dataclass
class StepStatus:
    """How one step stands; empty fields are not known.

    Attributes:
        step: as in its launch record.
        arm: "" for the steps of the whole campaign.
        state: waiting (not begun), pending (its pod waits), running, done, cached, failed, stopped or not run.
        pod, node, gpu: of the last attempt.
        seconds: since its start, or from start to end.
        metric: its result, or a training's last loss.
        checkpoint: of a training: updates in its newest commit.
        tracking: URL of its SwanLab run.
        failure_class: why it stands or failed, as a short name.
        retryable: whether running it again, unchanged, can help; None where nothing failed.
        reason: the same as a sentence.
    """

    step: str
    arm: str
    state: str
    pod: str = ""
    node: str = ""
    gpu: str = ""
    seconds: float | None = None
    metric: str = ""
    checkpoint: int | None = None
    tracking: str = ""
    failure_class: str = ""
    retryable: bool | None = None
    reason: str = ""

    @property
    def name(self) -> str:
        """The step, with its arm where it has one."""
        return f"{self.step} {self.arm}".rstrip()


@dataclass(frozen=True)
class CampaignStatus:
    """How a whole campaign stands.

    Attributes:
        run: as KFP has it.
        steps: in their order.
        records: launch records, by start.
        notes: what could not be looked at, and why.
    """

    run: CampaignRun
    steps: list[StepStatus]
    records: list[Record] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass
class _Seen:
    """What Kubernetes gave."""

    nodes: dict[tuple[str, tuple[int, ...]], StepNodes] = field(default_factory=dict)
    pods: dict[str, Object] = field(default_factory=dict)


class StatusReader:
    """Puts the sources together, as often as it is asked.

    Args:
        kubernetes: of the namespace that the run's pods are in.
        store: the campaign's, or the reason why it cannot be read.
    """

    def __init__(self, kubernetes: Kubernetes | Blind, store: Store | str):
        self._kubernetes = kubernetes
        self._store = store
        self._progress = None if isinstance(store, str) else TrainingProgress(store)

    def read(self, run: CampaignRun) -> CampaignStatus:
        """How the run stands now."""
        notes: list[str] = []
        records = self._records(run, notes)
        seen = self._look(run, notes)
        by_place = {(record["arm"], record["step"]): record for record in records}
        expected = expected_steps(run.parameters)
        told = {} if seen.nodes else _told_by_kfp(run, expected)
        steps = [self._step(run, wanted, by_place, seen, told.get(wanted.task)) for wanted in expected]
        return CampaignStatus(run, steps, records, notes)

    def _records(self, run: CampaignRun, notes: list[str]) -> list[Record]:
        if isinstance(self._store, str):
            notes.append(f"launch records are not read: {self._store}")
            return []
        try:
            return read_records(self._store, run.id)
        except StoreError as error:
            notes.append(f"launch records are not read: {error}")
            return []

    def _look(self, run: CampaignRun, notes: list[str]) -> _Seen:
        seen = _Seen()
        try:
            for pod in self._kubernetes.pods(run.id):
                metadata = pod.get("metadata", {})
                seen.pods[(metadata.get("annotations") or {}).get(NODE_ID, metadata.get("name", ""))] = pod
            nodes = step_nodes(self._kubernetes.workflow_nodes(run.id))
            seen.nodes = {(item.step, item.indices): item for item in nodes}
            if not seen.pods and not nodes:
                notes += self._nothing_there()
        except CannotLook as error:
            notes.append(f"pods are not looked at: {error}")
        return seen

    def _nothing_there(self) -> list[str]:
        namespace = self._kubernetes.namespace
        if not self._kubernetes.has_namespace():
            return [
                f"pods are not looked at: there is no namespace {namespace!r}, give that of the pods by --namespace"
            ]
        return [f"Kubernetes has nothing of this run in namespace {namespace!r}: not yet, no longer, or not there"]

    def _step(
        self,
        run: CampaignRun,
        wanted: ExpectedStep,
        records: Mapping[tuple[str, str], Record],
        seen: _Seen,
        told: str | None,
    ) -> StepStatus:
        record = records.get((wanted.arm, wanted.step))
        nodes = seen.nodes.get((wanted.task, wanted.indices))
        pod = seen.pods.get(nodes.attempts[-1]) if nodes and nodes.attempts else None
        state = _state(run, nodes, pod, record, told)
        status = StepStatus(step=wanted.step, arm="" if wanted.arm == CAMPAIGN else wanted.arm, state=state)
        if pod is not None and record is not None and record.get("pod") not in (None, pod["metadata"]["name"]):
            record = None  # An earlier attempt's; the pod that runs now has not written its own yet.
        _fill_places(status, record, pod, nodes)
        if record is not None:
            self._fill_results(status, record)
        if state in {"failed", "pending", "stopped"}:
            self._fill_reason(status, record, nodes, pod)
        return status

    def _fill_results(self, status: StepStatus, record: Record) -> None:
        status.metric = str(record.get("result", ""))
        status.tracking = str((record.get("tracking") or {}).get("url") or "")
        if "training" in record and self._progress is not None:
            progress = self._progress.read(record["training"])
            if progress is not None:
                status.checkpoint = progress.step
                status.metric = status.metric or progress.metric
                status.tracking = status.tracking or progress.url

    def _fill_reason(
        self, status: StepStatus, record: Record | None, nodes: StepNodes | None, pod: Object | None
    ) -> None:
        found = self._kubernetes_reason(nodes, pod)
        if status.state == "failed" and record is not None and record["status"] == "failed":
            status.failure_class, status.reason = record.get("failure_class", ""), record.get("reason", "")
            status.retryable = record.get("retryable")
            return
        if found is not None:
            status.failure_class, status.reason = found.kind, found.text
        elif status.state == "failed":
            status.failure_class, status.reason = _unexplained(record, nodes)
        if status.state == "failed":
            status.retryable = found is None or found.cured_by_retry

    def _kubernetes_reason(self, nodes: StepNodes | None, pod: Object | None) -> Reason | None:
        if pod is not None:
            events: Sequence[Object] = ()
            if pod.get("status", {}).get("phase") == "Pending":
                try:
                    events = self._kubernetes.events(pod["metadata"]["name"])
                except CannotLook:
                    events = ()  # The pod's own status tells most of it, and that was read.
            found = pod_reason(pod, events)
            if found is not None and found.kind != "failed":
                return found
        for message in nodes.messages if nodes else ():
            if (found := node_reason(message)) is not None:
                return found
        return pod_reason(pod) if pod is not None else None


def _state(
    run: CampaignRun, nodes: StepNodes | None, pod: Object | None, record: Record | None, told: str | None
) -> str:
    if nodes is not None:
        if nodes.cached:
            return "cached"
        if nodes.phase in {"Failed", "Error"} and any(map(was_stopped, nodes.messages)):
            return "stopped"
        if nodes.over:
            return NODE_STATES[nodes.phase]
        waits = pod is not None and pod.get("status", {}).get("phase") == "Pending"
        refused = pod is None and any(node_reason(text) for text in nodes.messages)
        return "pending" if waits or refused else "running"
    if record is not None and record["status"] != "running":
        return "done" if record["status"] == "succeeded" else "failed"
    if told is not None:
        return told
    if record is not None:
        return "running" if run.active else "stopped" if run.state == "CANCELED" else "failed"
    return "waiting" if run.active else "not run"


def _told_by_kfp(run: CampaignRun, expected: Sequence[ExpectedStep]) -> dict[str, str]:
    """The state of each kind of step, by KFP's word alone.

    KFP lists its tasks without the loop they are in, so its word counts where it lists all of a kind, in one state.
    """
    told = {}
    for task, count in Counter(wanted.task for wanted in expected).items():
        states = [state for name, state in run.tasks if name == task.replace("_", "-")]
        if len(states) == count and len(set(states)) == 1 and states[0] in KFP_STATES:
            told[task] = KFP_STATES[states[0]]
    return told


def _fill_places(status: StepStatus, record: Record | None, pod: Object | None, nodes: StepNodes | None) -> None:
    if pod is not None:
        status.pod = pod["metadata"]["name"]
        status.node = pod.get("spec", {}).get("nodeName", "")
        status.gpu = _gpus(pod)
    started = nodes.started if nodes else ""
    finished = nodes.finished if nodes else ""
    if record is not None:
        status.pod = status.pod or str(record.get("pod", ""))
        status.node = status.node or str(record.get("node") or record.get("host", ""))
        status.gpu = status.gpu or str(record.get("gpu", ""))
        started = started or record.get("started_at", "")
        finished = finished or record.get("ended_at", "")
    if started and status.state != "cached":
        end = datetime.fromisoformat(finished) if finished else datetime.now(UTC)
        status.seconds = max(0.0, round((end - datetime.fromisoformat(started)).total_seconds()))


def _gpus(pod: Object) -> str:
    """What the pod asked for, such as `1 gpu`: an extended resource is named as `nvidia.com/gpu`."""
    for container in pod.get("spec", {}).get("containers", []):
        for resource, count in (container.get("resources", {}).get("limits") or {}).items():
            if "/" in resource:
                return f"{count} {resource.rpartition('/')[2]}"
    return ""


def _unexplained(record: Record | None, nodes: StepNodes | None) -> tuple[str, str]:
    """Class and sentence where neither the pod nor a finished record says why."""
    if record is not None and record["status"] == "running":
        return "killed", "its process ended without a word (killed, or out of memory): read its pod's log."
    if nodes is not None and not nodes.attempts and nodes.driver in {"Failed", "Error"}:
        return "driver", f"KFP could not start it ({_first(nodes)}): read the log of its driver's pod."
    return "failed", f"{_first(nodes)}: read its log." if nodes and nodes.messages else "read its log in the KFP page."


def _first(nodes: StepNodes) -> str:
    return " ".join(nodes.messages[0].split())[:300] if nodes.messages else "no reason given"
