"""The command behind `python -m pipelines run`: from options to a finished campaign and its summary on the terminal."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from components.images import CPU_IMAGE, GPU_IMAGE
from pipelines import checks
from pipelines.arguments import CampaignOptions, campaign_arguments, choose_arms, shared_overrides
from pipelines.local.request import DOCKER
from pipelines.local.run import Outcome, failures, run_local
from pipelines.profiles import Defaults, load_profile
from roboimi.errors import ConfigError
from roboimi.storage.launch_record import code_revision
from roboimi.storage.store import Store, open_store
from roboimi.vla.data.manifest import MANIFEST_NAME, DatasetRef

PLAIN_WIDTH = 160


@dataclass(frozen=True, kw_only=True)
class LocalOptions(CampaignOptions):
    """The options of the command.

    Attributes:
        record: how many demonstrations to record where there is no dataset.
        outputs: folder of logs.
        runner: how the steps run, one of `pipelines.local.request.RUNNERS`.
    """

    record: int | None
    outputs: Path
    runner: str


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
    renderer = _renderer(options.runner)
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
    outcome = run_local(
        arguments, profile=options.profile, outputs=options.outputs, console=console, runner=options.runner
    )
    return summarise(outcome, store, arguments["experiments"], console)


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


def _renderer(runner: str) -> str:
    """What draws, once it is known to: that of the image is tried by the steps themselves."""
    if runner != DOCKER:
        return checks.check_gl()
    from pipelines.local.docker_engine import check_images

    check_images((CPU_IMAGE, GPU_IMAGE), code_revision())
    return f"that of {GPU_IMAGE}"


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
