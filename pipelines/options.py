"""Groups of command line options that several commands share."""

import argparse

from pipelines.profiles import load_profile, profile_names


def add_dataset(parser: argparse.ArgumentParser, metavar: str, text: str) -> "argparse._ArgumentGroup":
    """`--dataset` and `--task`; gives the group, for what only one command has."""
    data = parser.add_argument_group("data")
    data.add_argument("--dataset", metavar=metavar, help=text)
    data.add_argument("--task", metavar="NAME", help="task of roboimi/vla/conf/task (default: transfer_cube)")
    return data


def add_campaign(parser: argparse.ArgumentParser) -> None:
    """What a campaign trains and how it is evaluated."""
    arms = parser.add_argument_group("arms")
    arms.add_argument("--arms", metavar="FILE.yaml", help="list of arms: entries with 'arm' and 'overrides'")
    arms.add_argument("--only", metavar="ARM", nargs="+", default=[], help="run these arms only")

    policy = parser.add_argument_group("policy, the same for every arm")
    policy.add_argument("--encoder", metavar="NAME", help="standin, NAME@REVISION of the hub, or a folder")
    policy.add_argument("--steps", metavar="N", type=positive, help="training steps")
    policy.add_argument(
        "--set", metavar="OVERRIDE", action="append", default=[], dest="overrides", help="a Hydra override (repeatable)"
    )

    evaluation = parser.add_argument_group("evaluation")
    evaluation.add_argument("--eval-episodes", metavar="N", type=positive, help="rollouts of each arm")
    evaluation.add_argument("--eval-seed", metavar="SEED", type=int, help="seed of the first rollout")


def add_images(parser: argparse.ArgumentParser) -> None:
    """The two images of a cluster's pods."""
    images = parser.add_argument_group("images, by digest for a real campaign")
    images.add_argument("--cpu-image", metavar="NAME@sha256:DIGEST")
    images.add_argument("--gpu-image", metavar="NAME@sha256:DIGEST")


def profiles(*, cluster: bool) -> list[str]:
    """Names of the profiles that run on a cluster, or of those that do not."""
    return [name for name in profile_names() if (load_profile(name).cluster is not None) == cluster]


def positive(text: str) -> int:
    """A whole number above 0.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive whole number")
    return int(text)
