"""A new campaign goes before the older ones of its name: they are stopped, waited for and archived.

Runs are superseded within one experiment and by the campaign's name, which `submit --name` gives. KFP's terminate
leaves the lease of a killed training in the store (see `pipelines.cluster.stop`), so a campaign that superseded
something tells its trainings to take over at once; one that superseded nothing does not, and waits for whoever else
trains the same.
"""

from collections.abc import Callable

from pipelines.cluster.campaign_runs import CampaignRun, campaign_runs
from pipelines.cluster.kfp_api import KfpApi
from pipelines.cluster.kubernetes_api import Blind, Kubernetes
from pipelines.cluster.stop import SECONDS_TO_END, end_runs


def active_runs(api: KfpApi, experiment_id: str | None, campaign: str) -> list[CampaignRun]:
    """The active runs of a campaign's name, newest first; none where the experiment is not there yet."""
    if experiment_id is None:
        return []
    return [run for run in campaign_runs(api, experiment_id) if run.active and run.campaign == campaign]


def supersede(
    api: KfpApi,
    kubernetes: Kubernetes | Blind,
    experiment_id: str,
    campaign: str,
    *,
    say: Callable[[str], None],
    limit_s: float = SECONDS_TO_END,
) -> list[CampaignRun]:
    """Stop and archive the active runs of a campaign's name.

    Returns:
        Those that were stopped.

    Raises:
        RunStateError: one does not end; then none is archived, and nothing should be started beside it.
    """
    older = active_runs(api, experiment_id, campaign)
    end_runs(api, kubernetes, older, say=say, limit_s=limit_s)
    for run in older:
        api.archive(run.id)
    return older
