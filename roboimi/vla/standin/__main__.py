"""`python -m roboimi.vla.standin {train,probe}`: see the package's docstring, and `--help`."""

import argparse
import contextlib
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from roboimi.envs.transfer_cube import DEFAULT_CAMERAS
from roboimi.errors import RoboimiError
from roboimi.vla.models.encoder import load_vision_model
from roboimi.vla.standin.card import CardFacts, require_free, write_tower
from roboimi.vla.standin.probe import format_table, probe_tower
from roboimi.vla.standin.scenes import render_scenes
from roboimi.vla.standin.train import TrainSettings, train_tower

PROBE_SEED_OFFSET = 1_000_000
"""The scenes of the probe are drawn from the seed plus this, so they are never those of a training."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one of the two commands; returns the exit code."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    try:
        with _renders_folder(options.renders) as renders:
            options.run(options, renders)
    except RoboimiError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def train(options: argparse.Namespace, renders: Path) -> None:
    """Render, train, probe, write."""
    settings = TrainSettings(steps=options.steps, seed=options.seed)
    require_free(options.out)
    scenes = render_scenes(renders, options.scenes, options.seed, options.cameras)
    print(f"rendered {len(scenes)} scenes of {len(scenes.cameras)} views")
    started = time.monotonic()
    model, losses = train_tower(scenes, settings)
    seconds = time.monotonic() - started
    print(f"trained {settings.steps} steps in {seconds:.0f} s, loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    unseen = render_scenes(renders, options.probe_scenes, options.seed + PROBE_SEED_OFFSET, options.cameras)
    rows = probe_tower(model, unseen)
    facts = CardFacts(
        settings=settings,
        cameras=scenes.cameras,
        scenes=len(scenes),
        probe_scenes=len(unseen),
        train_seconds=seconds,
        command=_command(options),
        probe=rows,
    )
    write_tower(model, facts, options.out)
    print(format_table(rows))
    print(f"wrote {options.out}")


def probe(options: argparse.Namespace, renders: Path) -> None:
    """Render unseen scenes and probe an encoder on them."""
    model = load_vision_model(options.encoder)
    scenes = render_scenes(renders, options.scenes, options.seed + PROBE_SEED_OFFSET, options.cameras)
    print(format_table(probe_tower(model, scenes)))


@contextlib.contextmanager
def _renders_folder(chosen: Path | None) -> Iterator[Path]:
    if chosen is not None:
        yield chosen
        return
    with tempfile.TemporaryDirectory(prefix="roboimi-standin-") as folder:
        yield Path(folder)


def _command(options: argparse.Namespace) -> str:
    words = ["python -m roboimi.vla.standin train --out FOLDER", f"--seed {options.seed}"]
    words += [f"--scenes {options.scenes} --steps {options.steps} --probe-scenes {options.probe_scenes}"]
    if tuple(options.cameras) != DEFAULT_CAMERAS:
        words.append(f"--cameras {' '.join(options.cameras)}")
    return " ".join(words)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m roboimi.vla.standin", description="The stand-in vision tower.")
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--seed", type=int, default=0, help="of everything random (default 0)")
    shared.add_argument("--cameras", nargs="+", default=DEFAULT_CAMERAS, help="views, in the order of the policy's")
    shared.add_argument("--renders", type=Path, help="folder that keeps the renders for the next run (default: none)")
    shared.add_argument(
        "--threads", type=int, default=1, help="of the tower; other numbers give other bytes (default 1)"
    )
    commands = parser.add_subparsers(required=True, metavar="{train,probe}")

    command = commands.add_parser("train", parents=[shared], help="render scenes, train a tower on them, write it")
    command.add_argument("--out", type=Path, required=True, help="new folder for weights and card")
    command.add_argument("--scenes", type=int, default=4800, help="to train on; 0.6 MB each (default 4800)")
    command.add_argument("--steps", type=int, default=TrainSettings.steps, help="optimiser steps (default 1000)")
    command.add_argument("--probe-scenes", type=int, default=1600, help="to measure on (default 1600)")
    command.set_defaults(run=train)

    command = commands.add_parser("probe", parents=[shared], help="measure what an encoder sees")
    command.add_argument(
        "--encoder", default="standin", help="a name, repository@revision, or folder (default standin)"
    )
    command.add_argument("--scenes", type=int, default=1600, help="to measure on (default 1600)")
    command.set_defaults(run=probe)
    return parser


if __name__ == "__main__":
    sys.exit(main())
