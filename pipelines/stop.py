"""End runs, and wait until they are really over.

KFP's "terminate" is a request: Argo shuts the workflow down and Kubernetes then ends the pods, each within its grace
period; until then a trainer still trains. So a run counts as over when KFP says so *and* none of its pods runs.

What it does to a training: KFP's launcher dies at SIGTERM before Python could act, so the trainer is killed. What it
committed stays, at most one checkpoint interval is lost, and the next campaign that holds the arm goes on from there.
Its lease stays in the store with nobody to renew it. A challenger in another pod cannot see that the holder is dead, so
it watches the document for one time to live (60 s) before it takes over; with `train.when_held=supersede` at once.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

from pipelines.campaign_runs import CampaignRun, RunStateError
from pipelines.kfp_api import KfpApi
from pipelines.kfp_connection import ServerError
from pipelines.kubernetes_api import Blind, CannotLook, Kubernetes

SECONDS_TO_END = 300.0
SECONDS_BETWEEN_LOOKS = 2.0

PODS_OVER = frozenset({"Succeeded", "Failed"})


def end_runs(
    api: KfpApi,
    kubernetes: Kubernetes | Blind,
    runs: Sequence[CampaignRun],
    *,
    say: Callable[[str], None],
    limit_s: float = SECONDS_TO_END,
    pause_s: float = SECONDS_BETWEEN_LOOKS,
) -> None:
    """Terminate runs and wait until they are over, their pods too.

    Args:
        api: the server.
        kubernetes: where the pods are; where it cannot be looked at, KFP's word has to do, and that is said.
        runs: active ones.
        say: gets a line a run.
        limit_s: how long they may take, together.
        pause_s: between two looks.

    Raises:
        RunStateError: one does not end.
    """
    deadline = time.monotonic() + limit_s
    for run in runs:
        _terminate(api, run)
    for run in runs:
        while True:
            state = CampaignRun.of(api.run(run.id))
            pods, blind = _living(kubernetes, run)
            if not state.active and not pods:
                break
            if time.monotonic() > deadline:
                what = f"the pods {', '.join(pods[:3])} still run" if pods else f"KFP says {state.state}"
                raise RunStateError(
                    f"Run {run.name} ({run.id}) does not end: {what} after {limit_s:.0f} s; look at it with `status`, "
                    "and delete what hangs."
                )
            time.sleep(pause_s)
        pods_too = f"its pods could not be looked at: {blind}" if blind else "no pod of it runs"
        say(f"stopped  {run.name} ({run.id}): KFP says {state.state}, {pods_too}")


def _terminate(api: KfpApi, run: CampaignRun) -> None:
    if run.state == "CANCELING":
        return
    try:
        api.terminate(run.id)
    except ServerError:
        # One that ended by itself in the meantime is refused.
        if CampaignRun.of(api.run(run.id)).active:
            raise


def _living(kubernetes: Kubernetes | Blind, run: CampaignRun) -> tuple[list[str], str]:
    """Names of the run's pods that have not ended, and why they could not be looked at."""
    try:
        pods: list[dict[str, Any]] = kubernetes.pods(run.id)
    except CannotLook as error:
        return [], str(error)
    return [pod["metadata"]["name"] for pod in pods if pod.get("status", {}).get("phase") not in PODS_OVER], ""
