"""`roboimi dataset push | pull | verify`: datasets to and from a store."""

import argparse
import sys
from pathlib import Path


def register(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the commands to the parser of `roboimi dataset`."""
    push = commands.add_parser("push", help="bring a dataset into a store; prints its reference")
    push.add_argument("dataset", metavar="PATH[@sha256:DIGEST]")
    push.add_argument("uri", metavar="STORE_URI", help="s3://bucket/datasets/name, or a folder")
    push.set_defaults(command=_push)

    pull = commands.add_parser("pull", help="make a folder of a dataset in a store")
    pull.add_argument("dataset", metavar="STORE_URI@sha256:DIGEST")
    pull.add_argument("folder", type=Path, metavar="PATH")
    pull.set_defaults(command=_pull)

    verify = commands.add_parser("verify", help="read every episode of a dataset in a store and compare its hash")
    verify.add_argument("dataset", metavar="STORE_URI@sha256:DIGEST")
    verify.set_defaults(command=_verify)


def _push(options: argparse.Namespace) -> int:
    from roboimi.vla.data.dataset_store import push_dataset
    from roboimi.vla.data.manifest import resolve_dataset

    print(push_dataset(resolve_dataset(options.dataset), options.uri))
    return 0


def _pull(options: argparse.Namespace) -> int:
    from roboimi.vla.data.dataset_store import pull_dataset

    print(pull_dataset(_in_store(options.dataset), options.folder).text)
    return 0


def _verify(options: argparse.Namespace) -> int:
    from roboimi.errors import DataError
    from roboimi.vla.data.dataset_store import verify_pushed

    ref = _in_store(options.dataset)
    problems = verify_pushed(ref)
    for problem in problems:
        print(f"error: {problem}: push the dataset again", file=sys.stderr)
    if problems:
        return DataError.exit_code
    size = sum(entry.bytes for entry in ref.manifest.episodes)
    print(f"verified {ref.text}: {len(ref.manifest.episodes)} episodes, {size / 2**20:.1f} MiB")
    return 0


def _in_store(text: str):
    from roboimi.errors import ConfigError
    from roboimi.vla.data.manifest import resolve_dataset

    if "://" not in text:
        raise ConfigError(f"{text!r} is no dataset in a store: give STORE_URI@sha256:DIGEST, as `dataset push` prints.")
    return resolve_dataset(text)
