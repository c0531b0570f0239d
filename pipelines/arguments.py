"""From the options of a campaign to the arguments of its pipeline: the same for this machine and for a cluster."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from pipelines.arms import Arm, campaign_arms, check_overrides, check_unique, only
from pipelines.profiles import Defaults
from roboimi.storage.launch_record import code_revision
from roboimi.vla.config import EvalConfig
from roboimi.vla.data.manifest import DatasetRef

TAKE_OVER = "train.when_held=supersede"
"""The override by which a training takes its lease from a holder that may still be alive."""


class DatasetName(NamedTuple):
    """A dataset that was not looked at: its reference with the digest, and the digest alone."""

    text: str
    digest: str


@dataclass(frozen=True, kw_only=True)
class CampaignOptions:
    """What every campaign can be told; None: what the profile says.

    Attributes:
        dataset: folder or URI of the episodes.
        task: file of `roboimi/vla/conf/task`.
        arms: file of the list of arms.
        only: names of the arms to run; empty: all.
        encoder: name of the vision tower.
        steps: of every training.
        overrides: Hydra overrides of every arm.
        eval_episodes: rollouts an arm.
        eval_seed: seed of the first rollout.
        store: where results live.
        profile: whose defaults to take.
        supersede: whether this campaign goes before an older one that is still active.
    """

    dataset: str | None
    task: str | None
    arms: str | None
    only: list[str]
    encoder: str | None
    steps: int | None
    overrides: list[str]
    eval_episodes: int | None
    eval_seed: int | None
    store: str | None
    profile: str
    supersede: bool


def choose_arms(options: CampaignOptions, defaults: Defaults) -> list[Arm]:
    """The arms to run: the file's, the reference arms where the profile wants them, of these `--only` the named."""
    arms = campaign_arms(defaults, options.arms)
    check_unique(arms, "The campaign")
    return only(arms, options.only)


def shared_overrides(options: CampaignOptions, defaults: Defaults) -> list[str]:
    """The Hydra overrides of every arm: the profile's, then the options', then `--set` in its order."""
    overrides = list(defaults.train_overrides)
    check_overrides(options.overrides, "--set")
    if options.task:
        overrides.append(f"task={options.task}")
    if options.steps:
        overrides.append(f"train.steps={options.steps}")
    if options.supersede:
        overrides.append(TAKE_OVER)
    return overrides + options.overrides


def campaign_arguments(
    options: CampaignOptions,
    defaults: Defaults,
    arms: Sequence[Arm],
    data: DatasetRef | DatasetName,
    encoder: str,
    store: str,
) -> dict[str, Any]:
    """The arguments of the pipeline function that every profile's pipeline has.

    Args:
        options: of the command line.
        defaults: of the profile.
        arms: to be trained.
        data: the dataset, or only its name.
        encoder: name of the vision tower.
        store: URI of the store.

    Raises:
        ConfigError: the rollouts' number or seed cannot work.
    """
    episodes = options.eval_episodes or defaults.eval_episodes
    seed = defaults.eval_seed if options.eval_seed is None else options.eval_seed
    EvalConfig(episodes=episodes, first_seed=seed)
    return {
        "dataset": data.text,
        "dataset_digest": data.digest,
        "store": store,
        "encoder": encoder,
        "experiments": [arm.as_parameter() for arm in arms],
        "train_overrides": shared_overrides(options, defaults),
        "eval_episodes": episodes,
        "eval_seed": seed,
        "code_revision": code_revision() or "",
    }
