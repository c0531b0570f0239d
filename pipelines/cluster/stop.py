"""End runs, and wait until they are really over.

KFP's "terminate" is a request: the run is CANCELING while its workflow's deadline is set to now. Argo then kills the
pods that run, each within its grace period, and starts no further step but the exit task, which still writes the
report; until then a trainer still trains. So a run counts as over when KFP says so *and* none of its pods runs.

Two things keep a run CANCELING for good, both seen on KFP 2.14. A pod of the exit task that cannot start (no image, no
room) is waited for without an end: it is deleted here, since nothing of it ever ran. And the workflow of a run that was
stopped, retried and stopped again may never close: without a pod for a minute, it counts as over.

What stopping does to a training: KFP's launcher dies at SIGTERM before Python could act, so the trainer is killed. What
it committed stays, at most one checkpoint interval is lost, and the next campaign that holds the arm goes on from
there. Its lease stays in the store with nobody to renew it. A challenger in another pod cannot see that the holder is
dead, so it watches the document for one time to live (60 s) before it takes over; with `train.when_held=supersede` at
once.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

from pipelines.cluster.campaign_runs import CampaignRun, RunStateError
from pipelines.cluster.kfp_api import KfpApi
from pipelines.cluster.kfp_connection import ServerError
from pipelines.cluster.kubernetes_api import Blind, CannotLook, Kubernetes

SECONDS_TO_END = 300.0
SECONDS_OF_PATIENCE = 60.0
"""How long pods may wait to start, or a run without pods to close, before something is done about it."""
SECONDS_BETWEEN_LOOKS = 2.0

PODS_OVER = frozenset({"Succeeded", "Failed"})

Pod = dict[str, Any]
Say = Callable[[str], None]


def end_runs(
    api: KfpApi,
    kubernetes: Kubernetes | Blind,
    runs: Sequence[CampaignRun],
    *,
    say: Say,
    limit_s: float = SECONDS_TO_END,
    patience_s: float = SECONDS_OF_PATIENCE,
    pause_s: float = SECONDS_BETWEEN_LOOKS,
) -> None:
    """Terminate runs and wait until they are over, their pods too.

    Args:
        api: the server.
        kubernetes: where the pods are; where it cannot be looked at, KFP's word has to do, and that is said.
        runs: active ones.
        say: gets a line a run.
        limit_s: how long they may take, together.
        patience_s: see `SECONDS_OF_PATIENCE`.
        pause_s: between two looks.

    Raises:
        RunStateError: one does not end.
    """
    deadline = time.monotonic() + limit_s
    for run in runs:
        _terminate(api, run)
    for run in runs:
        _Ending(api, kubernetes, run, say, patience_s).wait(deadline, limit_s, pause_s)


class _Ending:
    """One run that was asked to end."""

    def __init__(self, api: KfpApi, kubernetes: Kubernetes | Blind, run: CampaignRun, say: Say, patience_s: float):
        self._api, self._kubernetes, self._run, self._say = api, kubernetes, run, say
        self._patience_s = patience_s
        self._unstarted_since: float | None = None
        self._without_pods_since: float | None = None

    def wait(self, deadline: float, limit_s: float, pause_s: float) -> None:
        """Return when it is over; raises `RunStateError` where it is not by `deadline`."""
        run = self._run
        while True:
            state = CampaignRun.of(self._api.run(run.id))
            pods, blind = self._living()
            gone = not pods and not blind
            self._without_pods_since = _since(self._without_pods_since, gone)
            if (not state.active and not pods) or self._long(self._without_pods_since):
                break
            waiting = [pod for pod in pods if pod["status"].get("phase") == "Pending"]
            self._unstarted_since = _since(self._unstarted_since, bool(waiting) and len(waiting) == len(pods))
            if self._long(self._unstarted_since):
                self._delete(waiting)
                # Argo may make it again a few times before it believes it.
                self._unstarted_since, self._patience_s = None, self._patience_s / 6
            if time.monotonic() > deadline:
                names = ", ".join(pod["metadata"]["name"] for pod in pods[:3])
                what = f"the pods {names} still run" if pods else f"KFP says {state.state}"
                raise RunStateError(
                    f"Run {run.name} ({run.id}) does not end: {what} after {limit_s:.0f} s; look at it with `status`, "
                    "and delete what hangs."
                )
            time.sleep(pause_s)
        pods_too = f"its pods could not be looked at: {blind}" if blind else "no pod of it runs"
        self._say(f"stopped  {run.name} ({run.id}): KFP says {state.state}, {pods_too}")

    def _living(self) -> tuple[list[Pod], str]:
        """The run's pods that have not ended, and why they could not be looked at."""
        try:
            pods = self._kubernetes.pods(self._run.id)
        except CannotLook as error:
            return [], str(error)
        return [pod for pod in pods if pod.get("status", {}).get("phase") not in PODS_OVER], ""

    def _delete(self, pods: Sequence[Pod]) -> None:
        for pod in pods:
            name = pod["metadata"]["name"]
            try:
                self._kubernetes.delete_pod(name)
            except CannotLook as error:
                self._say(f"note     pod {name} cannot start and was not deleted: {error}")
            else:
                self._say(f"deleted  pod {name}, which could not start")

    def _long(self, since: float | None) -> bool:
        return since is not None and time.monotonic() - since >= self._patience_s


def _since(before: float | None, holds: bool) -> float | None:
    """Since when something holds, if it does."""
    if not holds:
        return None
    return time.monotonic() if before is None else before


def _terminate(api: KfpApi, run: CampaignRun) -> None:
    if run.state == "CANCELING":
        return
    try:
        api.terminate(run.id)
    except ServerError:
        # One that ended by itself in the meantime is refused.
        if CampaignRun.of(api.run(run.id)).active:
            raise
