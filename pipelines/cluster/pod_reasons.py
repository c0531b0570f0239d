"""Why a pod does not run, or no longer does: one sentence from its status and events, or from its workflow's node.

Kubernetes tells the same trouble in several places: conditions (scheduling, disruption), container states (images,
settings, memory), the pod's own reason (eviction, deadline), events (volumes, sandboxes) and, where a pod was never
made, only the message that Argo keeps (quota, admission). See "Pod Lifecycle" and "Disruptions" in its documentation.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

Object = dict[str, Any]

IMAGE_REASONS = frozenset({"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"})
SETTING_REASONS = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError"})
DISRUPTIONS = {
    "PreemptionByScheduler": "made way for a pod of a higher priority",
    "DeletionByTaintManager": "was deleted because its node got a taint (unreachable, or being drained)",
    "EvictionByEvictionAPI": "was evicted through the API (a node being drained)",
    "DeletionByPodGC": "was deleted because its node is gone",
    "TerminationByKubelet": "was ended by its node (shutdown, or resources running out)",
}
NODE_REASONS = frozenset({"Shutdown", "NodeShutdown", "Terminated", "NodeLost", "Preempting", "NodeAffinity"})
CURED_BY_RETRY = frozenset({"pod-deleted", "evicted", "disrupted", "node", "killed", "quota", "stopped", "failed"})
SIGNALS = {137: "SIGKILL", 143: "SIGTERM"}


@dataclass(frozen=True)
class Reason:
    """Why a step stands or failed.

    Attributes:
        kind: short name, for records and tables.
        text: one sentence: what is wrong, and what to do.
    """

    kind: str
    text: str

    @property
    def cured_by_retry(self) -> bool:
        """Whether running the step again, unchanged, can help."""
        return self.kind in CURED_BY_RETRY


def pod_reason(pod: Object, events: Sequence[Object] = ()) -> Reason | None:
    """Why a pod waits or failed; None where it runs, or has ended well.

    Args:
        pod: as the API gives it.
        events: of this pod.
    """
    status = pod.get("status", {})
    if status.get("phase") == "Succeeded":
        return None
    return (
        _disrupted(pod, status)
        or _container_trouble(status)
        or _unscheduled(status)
        or _from_events(pod, events)
        or _ended(status)
    )


def node_reason(message: str) -> Reason | None:
    """Why a step has no pod, or lost it, from the message of its workflow node; None where it says nothing."""
    text = " ".join(message.split())
    if "exceeded quota" in text:
        what = re.search(r"exceeded quota: .*", text)
        return Reason(
            "quota",
            f"its pod may not be made, {what[0] if what else text}: wait until others end, or have the quota raised.",
        )
    if "violates PodSecurity" in text:
        return Reason("admission", f"the namespace's Pod Security refuses its pod ({text}): relax it, or the profile.")
    if " is forbidden" in text or "admission webhook" in text:
        return Reason("admission", f"its pod may not be made ({text}): ask who runs the cluster.")
    if "pod deleted" in text.lower():
        return Reason("pod-deleted", "its pod was deleted while it ran: `retry` runs the step again.")
    if "OOMKilled" in text:
        return _out_of_memory()
    if "DeadlineExceeded" in text or "active on the node longer" in text:
        return _deadline()
    if was_stopped(text):
        return Reason("stopped", "the run was stopped.")
    return None


def was_stopped(message: str) -> bool:
    """Whether a node's message says that the whole run was ended from outside.

    KFP ends a run by setting its workflow's deadline to now; Argo's own command says with which strategy.
    """
    return any(part in message for part in ("Step exceeded its deadline", "exceeded workflow deadline", "Stopped with"))


def _disrupted(pod: Object, status: Object) -> Reason | None:
    if status.get("reason") == "Evicted":
        return Reason("evicted", f"its node evicted it ({_line(status)}): `retry` runs the step again.")
    if status.get("reason") == "DeadlineExceeded":
        return _deadline()
    if (
        str(status.get("reason", "")).startswith(("OutOf", "UnexpectedAdmission"))
        or status.get("reason") in NODE_REASONS
    ):
        return Reason(
            "node", f"its node refused or ended it ({status['reason']}: {_line(status)}): `retry` runs the step again."
        )
    for condition in _conditions(status, "DisruptionTarget"):
        told = DISRUPTIONS.get(condition.get("reason", ""), f"was disrupted ({condition.get('reason')})")
        return Reason("disrupted", f"it {told}: `retry` runs the step again.")
    if pod.get("metadata", {}).get("deletionTimestamp"):
        return Reason("pod-deleted", "its pod is being deleted: `retry` runs the step again.")
    return None


def _container_trouble(status: Object) -> Reason | None:
    for container, state in _states(status):
        waiting, ended = state.get("waiting") or {}, state.get("terminated") or {}
        if waiting.get("reason") in IMAGE_REASONS:
            return Reason(
                "image-pull",
                f"its image {container.get('image', '')} cannot be pulled ({waiting['reason']}: {_line(waiting)}): "
                "correct the image's name, or its pull secret.",
            )
        if waiting.get("reason") in SETTING_REASONS:
            return _setting(waiting)
        if ended.get("reason") == "OOMKilled":
            return _out_of_memory()
    return None


def _unscheduled(status: Object) -> Reason | None:
    for condition in _conditions(status, "PodScheduled", "False"):
        if condition.get("reason") == "SchedulingGated":
            return Reason("queued", "it waits for its turn in the queue.")
        return _no_node(_line(condition))
    return None


def _from_events(pod: Object, events: Sequence[Object]) -> Reason | None:
    """What only events tell: volumes, sandboxes, a scheduler's refusal that is not in the conditions yet."""
    name = pod.get("metadata", {}).get("name")
    own = [event for event in events if event.get("involvedObject", {}).get("name", name) == name]
    for event in sorted(own, key=_event_time, reverse=True):
        if event.get("type") != "Warning" or pod.get("status", {}).get("phase") not in {"Pending", None}:
            continue
        text, kind = _line(event), event.get("reason", "")
        if kind == "FailedScheduling":
            return _no_node(text)
        if kind in {"FailedMount", "FailedAttachVolume"}:
            return _setting({"reason": kind, "message": text})
        if kind in {"FailedCreatePodSandBox", "NetworkNotReady"}:
            return Reason("node", f"its node cannot start it ({text}): ask who runs the cluster.")
        if kind == "Failed" and "image" in text.lower():
            return Reason("image-pull", f"its image cannot be pulled ({text}): correct its name, or its pull secret.")
    return None


def _ended(status: Object) -> Reason | None:
    for container, state in _states(status):
        ended = state.get("terminated") or {}
        code = ended.get("exitCode", 0)
        if code in SIGNALS:
            return Reason("killed", f"its process was ended by {SIGNALS[code]}: `retry` runs the step again.")
        if code and container.get("name") == "main":
            return Reason("failed", f"it exited with code {code}: read its log.")
    return None


def _no_node(text: str) -> Reason:
    short = re.split(r"[.;,]? (?:no new claims to deallocate|preemption:)", text)[0].rstrip(".")
    if gpu := re.search(r"Insufficient (\S*gpu\S*)", short, re.IGNORECASE):
        return Reason(
            "unschedulable",
            f"no node has a free {gpu[1].rstrip(',.')} ({short}): wait for one, lower the profile's parallelism, or "
            "compare its gpu settings with the nodes.",
        )
    return Reason(
        "unschedulable", f"no node fits ({short}): compare the profile's resources and tolerations with the nodes."
    )


def _setting(waiting: Object) -> Reason:
    text = _line(waiting)
    if missing := re.search(r'(secret|configmap) "?([\w.-]+)"? not found', text):
        return Reason("missing-secret", f"the {missing[1]} {missing[2]} is not there: make it in the pod's namespace.")
    if missing := re.search(r"couldn't find key ([\w.-]+) in (Secret|ConfigMap) (\S+)", text):
        return Reason("missing-secret", f"the {missing[2]} {missing[3]} has no key {missing[1]}: add it.")
    return Reason("pod-config", f"its container cannot be made ({waiting.get('reason')}: {text}): correct the profile.")


def _out_of_memory() -> Reason:
    return Reason("oom-killed", "it used more memory than its limit (OOMKilled): raise the limit in the profile.")


def _deadline() -> Reason:
    return Reason(
        "timeout", "it ran longer than its timeout: raise timeout_s in the profile, or find what it waits for."
    )


def _states(status: Object) -> Iterator[tuple[Object, Object]]:
    for group in ("initContainerStatuses", "containerStatuses"):
        for container in status.get(group) or []:
            yield container, container.get("state") or {}


def _conditions(status: Object, kind: str, value: str = "True") -> Iterator[Object]:
    for condition in status.get("conditions") or []:
        if condition.get("type") == kind and condition.get("status") == value:
            yield condition


def _event_time(event: Object) -> str:
    series = event.get("series") or {}
    times = (series.get("lastObservedTime"), event.get("lastTimestamp"), event.get("eventTime"))
    return next((str(time) for time in times if time), "")


def _line(document: Object) -> str:
    """Kubernetes' words as a part of one sentence."""
    text = " ".join(str(document.get("message") or document.get("reason") or "").split())[:240]
    return text.rstrip(". ").replace(". ", "; ")
