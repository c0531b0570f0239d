"""Filmstrips: an episode as one row of small pictures, seen again by replaying what it executed.

Rollouts render only what the policy reads, which for a policy that reads no images is nothing. The simulation is a
function of seed and actions, so the episode is shown afterwards by replaying its actions; a replay that ends otherwise
than the record says is refused, because its pictures would show another episode.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from roboimi.errors import DataError
from roboimi.vla.rollouts.outcomes import FAILURE, SUCCESS
from roboimi.vla.rollouts.records import read_actions
from roboimi.vla.rollouts.task_env import EnvFactory, can_render, render_frames

FRAMES = 8
FRAME_WIDTH = 200
GAP = 4
LABEL_HEIGHT = 24
WEBP_QUALITY = 80
INK, PAPER = (235, 235, 235), (24, 26, 30)


@dataclass(frozen=True)
class StripFrame:
    """One picture (H, W, 3) uint8 and what is written below it."""

    picture: np.ndarray
    label: str


def write_filmstrips(
    folder: Path, lines: Sequence[Mapping[str, Any]], make_env: EnvFactory, camera: str, control_hz: int
) -> dict[str, dict[str, Any]]:
    """Write `filmstrip_success.webp` and `filmstrip_failure.webp` for the first episode of each kind in `lines`.

    Returns:
        For each kind that occurred `{"file", "seed", "camera"}`, or `{"seed", "reason"}` where a replay differs; empty
        where the environment cannot show itself.

    Raises:
        RenderError: there is no GL to render with.
    """
    strips: dict[str, dict[str, Any]] = {}
    for kind in (SUCCESS, FAILURE):
        line = next((line for line in lines if line["outcome"] == kind), None)
        if line is None:
            continue
        env = make_env()
        try:
            if not can_render(env):
                return {}
            frames = replay(env, line, read_actions(folder, line), camera, control_hz)
            path = folder / f"filmstrip_{kind}.webp"
            path.write_bytes(compose_strip(frames))
            strips[kind] = {"file": path.name, "seed": line["seed"], "camera": camera}
        except DataError as error:
            strips[kind] = {"seed": line["seed"], "reason": str(error)}
        finally:
            env.close()
    return strips


def replay(
    env: gymnasium.Env, line: Mapping[str, Any], actions: np.ndarray, camera: str, control_hz: int, count: int = FRAMES
) -> list[StripFrame]:
    """Run an episode again and render `count` moments of it, evenly spaced, the first and the last included.

    Args:
        env: a fresh environment of the task.
        line: the episode's record.
        actions: (steps, A), what it executed.
        camera: which one to look through.
        control_hz: control steps per second, for the labels.
        count: pictures.

    Raises:
        DataError: the replay ended otherwise than the record says.
    """
    moments = set(np.linspace(0, len(actions), num=min(count, len(actions) + 1)).round().astype(int).tolist())
    frames: list[StripFrame] = []
    _, info = env.reset(seed=line["seed"])
    stage, done = int(info.get("stage", 0)), False
    for step in range(len(actions) + 1):
        if step:
            _, _, terminated, truncated, info = env.step(actions[step - 1])
            stage, done = max(stage, int(info.get("stage", 0))), terminated or truncated
            if done and step < len(actions):
                break
        if step in moments:
            (picture,) = render_frames(env, (camera,))
            frames.append(StripFrame(picture, f"{step / control_hz:.1f} s · stage {stage}"))
    if not done or step != line["steps"] or bool(info.get("is_success")) != (line["outcome"] == SUCCESS):
        raise DataError(
            f"Replaying seed {line['seed']} did not end as recorded ({line['outcome']} after {line['steps']} steps): "
            "this environment is not a function of seed and actions, so there is no filmstrip of it."
        )
    return frames


def compose_strip(frames: Sequence[StripFrame], width: int = FRAME_WIDTH) -> bytes:
    """Set pictures side by side with their labels below; WebP bytes of one row, `width` pixels a picture."""
    height = round(width * frames[0].picture.shape[0] / frames[0].picture.shape[1])
    row = Image.new("RGB", (len(frames) * (width + GAP) - GAP, height + LABEL_HEIGHT), PAPER)
    draw = ImageDraw.Draw(row)
    font = ImageFont.load_default(size=15)
    for index, frame in enumerate(frames):
        left = index * (width + GAP)
        row.paste(Image.fromarray(frame.picture).resize((width, height), Image.Resampling.LANCZOS), (left, 0))
        draw.text((left + width / 2, height + LABEL_HEIGHT / 2), frame.label, INK, font, anchor="mm")
    target = BytesIO()
    row.save(target, "WEBP", quality=WEBP_QUALITY, method=5)
    return target.getvalue()
