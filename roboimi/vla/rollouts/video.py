"""Videos: every control step of an episode as H.264, with seed, outcome, step and stage burned in.

imageio-ffmpeg brings an ffmpeg of its own, so none has to be installed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from roboimi.errors import ConfigError
from roboimi.storage.atomic import atomic_path
from roboimi.vla.rollouts.replay import Moment

WIDTH = 480
BAR_HEIGHT = 32
SECONDS_AT_THE_END = 1.0
"""The last picture stays so long, so that the outcome can be read."""

INK, PAPER = (240, 240, 240), (24, 26, 30)
COLOUR_OF_OUTCOME = {"success": (96, 214, 120), "failure": (255, 120, 110)}


def write_video(path: Path, moments: Sequence[Moment], line: Mapping[str, Any], control_hz: int) -> None:
    """Write an MP4 of all `moments` at `control_hz` pictures a second: real time.

    Args:
        path: of the file; written whole or not at all.
        moments: one a control step.
        line: the episode's record, for what is burned in.
        control_hz: control steps per second.

    Raises:
        ConfigError: imageio-ffmpeg is not installed.
    """
    try:
        import imageio_ffmpeg
    except ImportError as error:
        raise ConfigError("Videos need imageio-ffmpeg: run `pip install 'roboimi[video]'`, or set videos=0.") from error
    pictures = [compose_picture(moment, line) for moment in moments]
    pictures += pictures[-1:] * round(SECONDS_AT_THE_END * control_hz)
    height, width = pictures[0].shape[:2]
    with atomic_path(path) as temporary:
        writer = imageio_ffmpeg.write_frames(
            str(temporary),
            (width, height),
            fps=control_hz,
            codec="libx264",
            pix_fmt_out="yuv420p",  # the one that every browser plays
            macro_block_size=2,
            ffmpeg_log_level="error",
            # The container's name cannot be told from a temporary file's, and its index comes first, for the web.
            output_params=[
                "-f",
                "mp4",
                "-movflags",
                "+faststart",
                "-crf",
                "23",
                "-preset",
                "veryfast",
                "-threads",
                "1",
            ],
        )
        writer.send(None)
        try:
            for picture in pictures:
                writer.send(picture)
        finally:
            writer.close()


def compose_picture(moment: Moment, line: Mapping[str, Any]) -> np.ndarray:
    """One picture (H, W, 3) uint8, both even, with a bar above it that says what it is."""
    height = round(WIDTH * moment.picture.shape[0] / moment.picture.shape[1]) // 2 * 2
    image = Image.new("RGB", (WIDTH, height + BAR_HEIGHT), PAPER)
    scaled = Image.fromarray(moment.picture).resize((WIDTH, height), Image.Resampling.BILINEAR)
    image.paste(scaled, (0, BAR_HEIGHT))
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(size=17)
    middle, outcome = BAR_HEIGHT / 2, str(line["outcome"])
    draw.text((8, middle), f"seed {line['seed']}", INK, font, anchor="lm")
    draw.text((WIDTH * 0.42, middle), outcome, COLOUR_OF_OUTCOME.get(outcome, INK), font, anchor="mm")
    text = f"step {moment.step} of {line['steps']} · stage {moment.stage}"
    draw.text((WIDTH - 8, middle), text, INK, font, anchor="rm")
    return np.ascontiguousarray(np.asarray(image))
