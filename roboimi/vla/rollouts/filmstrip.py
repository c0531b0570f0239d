"""Filmstrips: an episode as one row of small pictures with their labels, as WebP."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO

from PIL import Image, ImageDraw, ImageFont

from roboimi.vla.rollouts.replay import Moment

FRAMES = 8
FRAME_WIDTH = 200
GAP = 4
LABEL_HEIGHT = 24
WEBP_QUALITY = 80
INK, PAPER = (235, 235, 235), (24, 26, 30)


def compose_strip(moments: Sequence[Moment], width: int = FRAME_WIDTH) -> bytes:
    """Set pictures side by side with their labels below; WebP bytes of one row, `width` pixels a picture."""
    height = round(width * moments[0].picture.shape[0] / moments[0].picture.shape[1])
    row = Image.new("RGB", (len(moments) * (width + GAP) - GAP, height + LABEL_HEIGHT), PAPER)
    draw = ImageDraw.Draw(row)
    font = ImageFont.load_default(size=15)
    for index, moment in enumerate(moments):
        left = index * (width + GAP)
        row.paste(Image.fromarray(moment.picture).resize((width, height), Image.Resampling.LANCZOS), (left, 0))
        draw.text((left + width / 2, height + LABEL_HEIGHT / 2), moment.label, INK, font, anchor="mm")
    target = BytesIO()
    row.save(target, "WEBP", quality=WEBP_QUALITY, method=5)
    return target.getvalue()
