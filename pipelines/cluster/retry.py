"""Run the failed steps of a campaign again: KFP's own retry of a run, which keeps what succeeded.

A hopeless failure (a wrong setting, a damaged dataset) would fail again in the same way. The launch records tell it,
and where nothing else failed, nothing is started unless that is forced.
"""

import time
from collections.abc import Sequence

from pipelines.cluster.campaign_runs import CampaignRun, RunStateError
from pipelines.cluster.kfp_api import KfpApi
from pipelines.cluster.status import CampaignStatus, StepStatus

SECONDS_TO_BEGIN = 60.0
"""How long KFP may still call a run that it retries by its old state."""


def failed_steps(status: CampaignStatus) -> list[StepStatus]:
    """The steps that failed or were stopped."""
    return [step for step in status.steps if step.state in {"failed", "stopped"}]


def hopeless(steps: Sequence[StepStatus]) -> bool:
    """Whether running again can help none of the steps that failed."""
    return bool(steps) and all(step.retryable is False for step in steps)


def check_retry(status: CampaignStatus, *, force: bool = False) -> None:
    """See that retrying a run can do something.

    Args:
        status: of the run.
        force: whether a hopeless failure is tried all the same.

    Raises:
        RunStateError: the run is active, succeeded, or failed in a way that running again cannot help.
    """
    run = status.run
    if run.active:
        raise RunStateError(f"Run {run.name} is {run.state}: wait for its end, or stop it, before it is retried.")
    if run.state == "SUCCEEDED":
        raise RunStateError(f"Run {run.name} succeeded: submit a new one, which takes from it what has not changed.")
    failed = failed_steps(status)
    if not force and hopeless(failed):
        step = failed[0]
        raise RunStateError(
            f"Run {run.name} failed at {step.name} ({step.failure_class}: {step.reason.rstrip('.')}), and running it "
            "again cannot help: change what it says and submit anew, or retry it all the same by --force."
        )


def retry_run(api: KfpApi, run: CampaignRun) -> None:
    """Have KFP run the failed steps again, and see that it has begun to.

    Raises:
        ServerError: it refuses, for instance since the run's workflow is gone.
        RunStateError: it accepted, and the run is over all the same.
    """
    api.retry(run.id)
    deadline = time.monotonic() + SECONDS_TO_BEGIN
    while not CampaignRun.of(api.run(run.id)).active:
        if time.monotonic() > deadline:
            raise RunStateError(
                f"KFP accepted the retry of {run.name}, which has not begun after {SECONDS_TO_BEGIN:.0f} s: look at "
                "its page, or submit a new one."
            )
        time.sleep(1.0)
