"""The command line of campaigns: `python -m pipelines run`, `python -m pipelines compile`."""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from pipelines.cluster.options import CLUSTER_COMMANDS
from pipelines.local.request import RUNNERS, SUBPROCESS
from pipelines.options import add_campaign, add_dataset, add_images, positive, profiles
from pipelines.profiles import load_profile, profile_names
from roboimi.command_line import run_command

EPILOG = """\
examples:
  python -m pipelines run                                     record demonstrations, then run the default campaign
  python -m pipelines run --dataset ~/episodes                the same with your own episodes
  python -m pipelines run --only projection-96 --steps 500    one arm, briefly
  python -m pipelines run --set train.learning_rate=3e-4      a setting of every arm
  python -m pipelines run --runner docker                     the steps in the images that a cluster runs
  python -m pipelines compile --profile cluster -o campaign.yaml

A campaign that was stopped or killed goes on where it was when the same command is given again; finished steps are
recognised by their content.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; what is wrong is printed as one sentence, and the exit code says which kind it is."""
    try:
        code = run_command(build_parser(), arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # Whoever reads our output has seen enough; Python must not complain at its end either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines",
        description="Campaigns: train several policy variants on one dataset and say which is better.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_run(commands)
    _add_compile(commands)
    for name, add in CLUSTER_COMMANDS.items():
        add(commands).set_defaults(command=partial(_on_cluster, name))
    return parser


def _add_run(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "run",
        help="run a campaign on this machine",
        description="Run a campaign on this machine: validate, encode, train and evaluate each arm, report.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    data = add_dataset(
        parser,
        "PATH[@sha256:DIGEST]",
        "folder of episodes; without it, demonstrations are recorded with the scripted expert",
    )
    data.add_argument("--record", metavar="N", type=positive, help="how many demonstrations to record (no --dataset)")
    add_campaign(parser)

    where = parser.add_argument_group("where")
    where.add_argument("--store", metavar="PATH|s3://BUCKET/PREFIX", help="where results live (default: outputs/store)")
    where.add_argument("--outputs", metavar="PATH", type=Path, default=Path("outputs"), help="where logs go")
    where.add_argument(
        "--profile", choices=profiles(cluster=False), default="local", help="defaults to take (default: local)"
    )
    where.add_argument(
        "--runner",
        choices=RUNNERS,
        default=SUBPROCESS,
        help="run the steps as processes of this machine, or in their images by Docker (default: %(default)s)",
    )
    where.add_argument(
        "--supersede",
        action="store_true",
        help="take over trainings that another process holds (default: wait for its result and adopt it)",
    )
    parser.set_defaults(command=_run)


def _add_compile(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "compile",
        help="compile the campaign for Kubeflow Pipelines",
        description="Compile the campaign to a file that Kubeflow Pipelines takes.",
    )
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, default=Path("campaign.yaml"), help="where to")
    parser.add_argument(
        "--profile",
        metavar="NAME|FILE.yaml",
        default="cluster",
        help=f"{', '.join(profile_names())}, or a file of yours",
    )
    parser.add_argument("--arms", metavar="FILE.yaml", help="arms that the parameter 'experiments' holds by default")
    add_images(parser)
    parser.set_defaults(command=_compile)


def _on_cluster(name: str, options: argparse.Namespace) -> int:
    from pipelines.cluster import commands as cluster_commands

    return getattr(cluster_commands, name)(options)


def _run(options: argparse.Namespace) -> int:
    from pipelines.local.campaign import LocalOptions, run_campaign

    named = {field: getattr(options, field) for field in LocalOptions.__dataclass_fields__}
    return run_campaign(LocalOptions(**named))


def _compile(options: argparse.Namespace) -> int:
    from pipelines.arms import campaign_arms
    from pipelines.compile import compile_campaign

    profile = load_profile(options.profile)
    if options.cpu_image or options.gpu_image:
        profile = profile.with_images(options.cpu_image, options.gpu_image)
    if options.arms:
        profile = replace(profile, defaults=replace(profile.defaults, arms=options.arms))
    arms = campaign_arms(profile.defaults)
    print(f"compiled {compile_campaign(profile, options.output, arms)}: {', '.join(arm.name for arm in arms)}")
    return 0
