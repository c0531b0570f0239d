"""Which episodes are shown, and how: a filmstrip of one success and one failure, videos of a few more.

Pictures are drawn in a process of their own, under a deadline: a renderer that hangs costs the pictures, not the
results that they belong to.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from roboimi.errors import RoboimiError
from roboimi.vla.config import TaskConfig
from roboimi.vla.rollouts.filmstrip import FRAMES, compose_strip
from roboimi.vla.rollouts.outcomes import FAILURE, SUCCESS
from roboimi.vla.rollouts.records import read_actions
from roboimi.vla.rollouts.replay import replay, spread
from roboimi.vla.rollouts.task_env import EnvFactory, can_render, env_factory
from roboimi.vla.rollouts.video import write_video
from roboimi.worker_process import begin_worker_process

DEADLINE_S = 600.0
NOT_DRAWN = (RoboimiError, OSError)
"""What costs an episode its picture and nothing else."""


@dataclass(frozen=True)
class Pictures:
    """What was drawn.

    Attributes:
        filmstrips: for each kind that occurred `{"file", "seed", "camera"}`, or `{"seed", "reason"}`.
        videos: `{"file", "seed", "outcome", "camera"}`, or `{"seed", "outcome", "reason"}`.
    """

    filmstrips: dict[str, dict[str, Any]] = field(default_factory=dict)
    videos: list[dict[str, Any]] = field(default_factory=list)


def draw_pictures(
    folder: Path, lines: Sequence[Mapping[str, Any]], task: TaskConfig, *, filmstrips: bool, videos: int
) -> Pictures:
    """Draw an evaluation's pictures into its folder, in another process.

    Args:
        folder: of the evaluation, with its actions.
        lines: its episodes.
        task: what to replay them in.
        filmstrips: whether to write `filmstrip_success.webp` and `filmstrip_failure.webp`.
        videos: of how many episodes to write `seed_<seed>_<outcome>.mp4`.
    """
    if not filmstrips and not videos:
        return Pictures()
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    arguments = (theirs, folder, list(lines), task, filmstrips, videos)
    process = context.Process(target=_draw_and_send, args=arguments, daemon=True)
    process.start()
    theirs.close()
    try:
        return ours.recv() if ours.poll(DEADLINE_S) else _without(lines, f"not drawn within {DEADLINE_S:g} s")
    except EOFError:
        process.join()
        return _without(lines, f"the process that drew it ended with exit code {process.exitcode}")
    finally:
        ours.close()
        process.kill()
        process.join()


def draw(
    folder: Path,
    lines: Sequence[Mapping[str, Any]],
    task: TaskConfig,
    make_env: EnvFactory,
    *,
    filmstrips: bool,
    videos: int,
) -> Pictures:
    """Draw in this process; see `draw_pictures`. An environment that cannot show itself gives no pictures."""
    camera, pictures = task.cameras[0], Pictures()
    probe = make_env()
    probe.close()
    if not can_render(probe):
        return pictures
    for kind in (SUCCESS, FAILURE) if filmstrips else ():
        line = next((line for line in lines if line["outcome"] == kind), None)
        if line is not None:
            moments = spread(line["steps"], FRAMES)
            pictures.filmstrips[kind] = {"seed": line["seed"]} | _drawn(
                folder / f"filmstrip_{kind}.webp", folder, line, task, make_env, camera, moments
            )
    for line in in_turn(lines, videos):
        path = folder / f"seed_{line['seed']}_{line['outcome']}.mp4"
        facts = {"seed": line["seed"], "outcome": line["outcome"]}
        moments = range(line["steps"] + 1)
        pictures.videos.append(facts | _drawn(path, folder, line, task, make_env, camera, moments))
    return pictures


def in_turn(lines: Sequence[Mapping[str, Any]], count: int) -> list[Mapping[str, Any]]:
    """The first `count` episodes, successes and failures in turn, as far as there are both."""
    kinds = [[line for line in lines if line["outcome"] == kind] for kind in (SUCCESS, FAILURE)]
    chosen: list[Mapping[str, Any]] = []
    while len(chosen) < count and any(kinds):
        chosen += [kind.pop(0) for kind in kinds if kind]
    return chosen[:count]


def _drawn(
    path: Path,
    folder: Path,
    line: Mapping[str, Any],
    task: TaskConfig,
    make_env: EnvFactory,
    camera: str,
    moments: Any,
) -> dict[str, Any]:
    env = make_env()
    try:
        shown = replay(env, line, read_actions(folder, line), camera, task.control_hz, moments)
        if path.suffix == ".mp4":
            write_video(path, shown, line, task.control_hz)
        else:
            path.write_bytes(compose_strip(shown))
    except NOT_DRAWN as error:
        return {"reason": str(error)}
    finally:
        env.close()
    return {"file": path.name, "camera": camera}


def _draw_and_send(
    connection: Connection, folder: Path, lines: list[Any], task: TaskConfig, filmstrips: bool, videos: int
) -> None:
    begin_worker_process()
    if not os.environ.get("MUJOCO_GL"):
        os.environ["MUJOCO_GL"] = "egl"
    connection.send(draw(folder, lines, task, env_factory(task), filmstrips=filmstrips, videos=videos))


def _without(lines: Sequence[Mapping[str, Any]], reason: str) -> Pictures:
    """No pictures, and why, for the episodes that would have had a filmstrip."""
    strips = {}
    for kind in (SUCCESS, FAILURE):
        line = next((line for line in lines if line["outcome"] == kind), None)
        if line is not None:
            strips[kind] = {"seed": line["seed"], "reason": reason}
    return Pictures(filmstrips=strips)
