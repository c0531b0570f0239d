"""The command behind `python -m pipelines run`: from options to a finished campaign and its summary on the terminal."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from pipelines import checks
from pipelines.arms import Arm, campaign_arms, check_overrides, check_unique, only
from pipelines.local_run import Outcome, failures, run_local
from pipelines.profiles import Defaults, load_profile
from roboimi.errors import ConfigError
from roboimi.storage.launch_record import code_revision
from roboimi.storage.store import Store, open_store
from roboimi.vla.config import EvalConfig
from roboimi.vla.data.manifest import MANIFEST_NAME, DatasetRef

PLAIN_WIDTH = 160


@dataclass(frozen=True)
class LocalOptions:
    """The options of the command; None: what the profile says."""

    dataset: str | None
    record: int | None
    task: str | None
    arms: str | None
    only: list[str]
    encoder: str | None
    steps: int | None
    overrides: list[str]
    eval_episodes: int | None
    eval_seed: int | None
    store: str | None
    outputs: Path
    profile: str


def run_campaign(options: LocalOptions) -> int:
    """Check, record if there is nothing to learn from, run, and sum up.

    Returns:
        The exit code: 0 when every step succeeded.

    Raises:
        RoboimiError: something is wrong that can be known before the first step.
    """
    # Where there is no terminal to ask, rich would fold everything to 80 columns.
    console = Console() if sys.stdout.isatty() else Console(width=PLAIN_WIDTH)
    profile = load_profile(options.profile)
    defaults = profile.defaults
    checks.check_writable(options.outputs)
    checks.check_memory(arms=profile.parallelism)
    store = open_store(options.store or defaults.store)
    encoder = options.encoder or defaults.encoder
    description = checks.check_encoder(encoder)
    arms = choose_arms(options, defaults)
    shared = shared_overrides(options, defaults)
    renderer = checks.check_gl()
    ref = _dataset(options, defaults, console)
    arms, left_out = checks.usable_arms(arms, ref)
    for arm in left_out:
        console.print(f"{arm.name} is left out: {ref.root} has no environment state.", highlight=False)
    checks.check_arms(arms, shared, ref, encoder)
    checks.check_disk(store.folder("campaigns"), ref, len(arms))
    arguments = campaign_arguments(options, defaults, arms, ref, encoder, store.uri)
    where = ref.source or ref.root
    console.print(f"data     {where} ({len(ref.manifest.episodes)} episodes)", highlight=False, soft_wrap=True)
    console.print(f"encoder  {description}", highlight=False, soft_wrap=True)
    console.print(f"arms     {', '.join(arm.name for arm in arms)}", highlight=False, soft_wrap=True)
    console.print(f"renderer {renderer}", highlight=False, soft_wrap=True)
    outcome = run_local(arguments, profile=options.profile, outputs=options.outputs, console=console)
    return summarise(outcome, store, arguments["experiments"], console)


def choose_arms(options: LocalOptions, defaults: Defaults) -> list[Arm]:
    """The arms to run: the file's, the reference arms where the profile wants them, of these `--only` the named."""
    arms = campaign_arms(defaults, options.arms)
    check_unique(arms, "The campaign")
    return only(arms, options.only)


def shared_overrides(options: LocalOptions, defaults: Defaults) -> list[str]:
    """The Hydra overrides of every arm: the profile's, then the options', then `--set` in its order."""
    overrides = list(defaults.train_overrides)
    check_overrides(options.overrides, "--set")
    if options.task:
        overrides.append(f"task={options.task}")
    if options.steps:
        overrides.append(f"train.steps={options.steps}")
    return overrides + options.overrides


def campaign_arguments(
    options: LocalOptions, defaults: Defaults, arms: list[Arm], ref: DatasetRef, encoder: str, store: str
) -> dict[str, Any]:
    """The arguments of the pipeline function."""
    episodes = options.eval_episodes or defaults.eval_episodes
    seed = defaults.eval_seed if options.eval_seed is None else options.eval_seed
    EvalConfig(episodes=episodes, first_seed=seed)
    return {
        "dataset": ref.text,
        "dataset_digest": ref.digest,
        "store": store,
        "encoder": encoder,
        "experiments": [arm.as_parameter() for arm in arms],
        "train_overrides": shared_overrides(options, defaults),
        "eval_episodes": episodes,
        "eval_seed": seed,
        "code_revision": code_revision() or "",
    }


def summarise(outcome: Outcome, store: Store, experiments: list[dict[str, Any]], console: Console) -> int:
    """Print the comparison and where the report is, and what failed on standard error; gives the exit code."""
    if outcome.report is not None:
        from roboimi.reports.campaign_data import collect
        from roboimi.reports.terminal import render_table

        campaign = collect(store, outcome.job_id, experiments)
        console.print(render_table(campaign), highlight=False)
        console.print(f"report   {outcome.report}", highlight=False, soft_wrap=True)
    if outcome.exit_code >= 128:
        print("stopped: the same command goes on from the last checkpoint.", file=sys.stderr)
    elif outcome.exit_code:
        for sentence, log in failures(outcome):
            print(f"error: {sentence}\n       its log is {log}", file=sys.stderr)
    return outcome.exit_code


def _dataset(options: LocalOptions, defaults: Defaults, console: Console) -> DatasetRef:
    if options.dataset is not None:
        if options.record is not None:
            raise ConfigError("--dataset and --record exclude each other: give episodes, or have them recorded.")
        return checks.find_dataset(options.dataset)
    from roboimi.envs.record import record

    folder = Path(defaults.dataset)
    if not (folder / MANIFEST_NAME).is_file():
        console.print(f"recording demonstrations into {folder}", highlight=False)
    record(folder, episodes=options.record or defaults.record_episodes)
    return checks.find_dataset(str(folder))
