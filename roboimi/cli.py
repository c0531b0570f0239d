"""The command `roboimi`: record demonstrations, import episodes, validate a dataset.

Training, rollouts and campaigns have commands of their own: `python -m roboimi.vla.train_vla`,
`python -m roboimi.vla.eval_vla` and `python -m pipelines`.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from roboimi import encoder_commands
from roboimi.checkpoints_command import add_checkpoints_commands
from roboimi.command_line import run_command
from roboimi.reports import compare_command
from roboimi.vla.data import dataset_commands, exchange_commands

EPILOG = """\
examples:
  roboimi record datasets/transfer_cube --episodes 100
  roboimi import act ~/episodes
  roboimi validate datasets/transfer_cube
  roboimi dataset push datasets/transfer_cube s3://bucket/datasets/transfer_cube
  roboimi encoder stage google/siglip2-base-patch16-256@REVISION s3://bucket/store
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; what is wrong is printed as one sentence, and the exit code says which kind it is."""
    return run_command(build_parser(), arguments)


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="roboimi",
        description="Datasets for robot-learning campaigns.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    record = commands.add_parser("record", help="record demonstrations with the scripted expert")
    record.add_argument("out", type=Path, metavar="FOLDER", help="where the dataset goes")
    record.add_argument("--episodes", type=int, default=100, metavar="N", help="successful episodes (default: 100)")
    record.add_argument("--seed", type=int, default=0, help="seed of the first episode (default: 0)")
    record.add_argument("--workers", type=int, default=None, metavar="N", help="processes (default: cores)")
    record.add_argument(
        "--noise", type=float, default=0.01, metavar="RAD", help="noise on executed actions, not labels"
    )
    record.set_defaults(command=_record)

    validate = commands.add_parser("validate", help="check every episode of a dataset")
    validate.add_argument("dataset", metavar="PATH[@sha256:DIGEST]")
    validate.add_argument("--again", action="store_true", help="also when the same files were validated before")
    validate.add_argument("--contract", type=Path, metavar="YAML", help="what the dataset and its robot must be")
    validate.add_argument("--workers", type=int, metavar="N", help="processes that read episodes (default: cores)")
    validate.add_argument("--repack", type=Path, metavar="OUT", help="write a clean copy of a sound dataset to OUT")
    validate.add_argument("--fix", action="store_true", help=argparse.SUPPRESS)
    validate.set_defaults(command=_validate)

    exchange_commands.register(commands)
    compare_command.register(commands)

    dataset = commands.add_parser("dataset", help="manage datasets").add_subparsers(required=True, metavar="COMMAND")
    dataset_commands.register(dataset)
    importer = dataset.add_parser("import", help="give a folder of ACT-style episodes a manifest")
    importer.add_argument("folder", type=Path, metavar="FOLDER")
    importer.add_argument("--cameras", nargs="+", metavar="NAME", help="in the order of the view axis")
    importer.add_argument("--fps", type=int, metavar="HZ", help="the rate, where the episodes do not tell it")
    importer.set_defaults(command=_import)
    add_checkpoints_commands(commands)
    encoder_commands.register(commands)
    return parser


def _record(options: argparse.Namespace) -> int:
    from roboimi.envs.record import record

    digest = record(options.out, options.episodes, seed=options.seed, workers=options.workers, noise_std=options.noise)
    print(f"{options.out}@sha256:{digest}")
    return 0


def _validate(options: argparse.Namespace) -> int:
    from roboimi.vla.data.validate.command import validate_command

    return validate_command(options)


def _import(options: argparse.Namespace) -> int:
    from roboimi.vla.data.import_episodes import ingest

    ref = ingest(options.folder, cameras=options.cameras, default_fps=options.fps)
    print(ref.text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
