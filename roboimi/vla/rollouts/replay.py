"""Episodes seen again: what an episode executed is executed once more, and some moments of it are rendered.

Rollouts render only what the policy reads, which for a policy that reads no images is nothing. The simulation is a
function of seed and actions, so the episode is shown afterwards by replaying its actions; a replay that ends otherwise
than the record says is refused, because its pictures would show another episode.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from PIL import Image, ImageDraw

from roboimi.errors import DataError
from roboimi.vla.rollouts.outcomes import SUCCESS
from roboimi.vla.rollouts.task_env import render_frames

PATH_COLOURS = ((255, 176, 32), (64, 196, 255))
"""Of the end effectors' paths, in the environment's order."""


@dataclass(frozen=True)
class Moment:
    """One picture (H, W, 3) uint8 after `step` control steps, the highest `stage` until then, and what it means."""

    picture: np.ndarray
    step: int
    seconds: float
    stage: int

    @property
    def label(self) -> str:
        """When, and how far."""
        return f"{self.seconds:.1f} s · stage {self.stage}"


def spread(steps: int, count: int) -> set[int]:
    """`count` moments of an episode of `steps` steps, evenly spaced, the first and the last included."""
    return set(np.linspace(0, steps, num=min(count, steps + 1)).round().astype(int).tolist())


def replay(
    env: gymnasium.Env,
    line: Mapping[str, Any],
    actions: np.ndarray,
    camera: str,
    control_hz: int,
    moments: Collection[int],
) -> list[Moment]:
    """Run an episode again and render some moments of it, with the paths of the end effectors until then.

    Args:
        env: a fresh environment of the task.
        line: the episode's record.
        actions: (steps, A), what it executed.
        camera: which one to look through.
        control_hz: control steps per second.
        moments: after which numbers of steps; 0 is the start.

    Raises:
        DataError: the replay ended otherwise than the record says.
    """
    wanted, shown = set(moments), []
    observation, info = env.reset(seed=line["seed"])
    stage, done = int(info.get("stage", 0)), False
    trace: list[np.ndarray] = []
    for step in range(len(actions) + 1):
        if step:
            observation, _, terminated, truncated, info = env.step(actions[step - 1])
            stage, done = max(stage, int(info.get("stage", 0))), bool(terminated or truncated)
            if done and step < len(actions):
                break
        if hasattr(env.unwrapped, "end_effector_pixels"):
            trace.append(env.unwrapped.end_effector_pixels(camera))
        if step in wanted:
            (picture,) = render_frames(env, (camera,), observation)
            shown.append(Moment(draw_paths(picture, trace), step, step / control_hz, stage))
    if not done or step != line["steps"] or bool(info.get("is_success")) != (line["outcome"] == SUCCESS):
        raise DataError(
            f"Replaying seed {line['seed']} did not end as recorded ({line['outcome']} after {line['steps']} steps): "
            "this environment is not a function of seed and actions, so there are no pictures of it."
        )
    return shown


def draw_paths(picture: np.ndarray, trace: list[np.ndarray]) -> np.ndarray:
    """A picture (H, W, 3) uint8 with a line along each end effector's pixels, (n, 2) at each step so far."""
    if len(trace) < 2:
        return picture
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    for index, path in enumerate(np.stack(trace, axis=1)):  # (steps, 2) of one end effector
        colour = PATH_COLOURS[index % len(PATH_COLOURS)]
        seen = path[np.isfinite(path).all(axis=1)]
        if len(seen) > 1:
            draw.line([tuple(point) for point in seen.tolist()], fill=colour, width=max(1, picture.shape[0] // 160))
            column, row = seen[-1]
            radius = max(2, picture.shape[0] // 100)
            draw.ellipse((column - radius, row - radius, column + radius, row + radius), fill=colour)
    return np.asarray(image)
