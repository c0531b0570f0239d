"""Small inline SVG for the validation page: histograms, and ranges against limits, in CSS classes of the page."""

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

_WIDTH, _HEIGHT = 220, 64
_BASE = _HEIGHT - 14


def histogram(values: np.ndarray, *, label: str, bins: int = 24, unit: str = "") -> Markup:
    """Counts of `values` as bars, with the lowest and the highest value below.

    Args:
        values: any shape; what is not finite is left out.
        label: of the drawing, for those who cannot see it.
        bins: how many bars.
        unit: behind the numbers.
    """
    values = np.asarray(values, dtype=np.float64).reshape(-1)
    values = values[np.isfinite(values)]
    if not len(values):
        return Markup("")
    low, high = float(values.min()), float(values.max())
    counts, _ = np.histogram(values, bins=bins, range=(low, high if high > low else low + 1.0))
    width = _WIDTH / bins
    bars = [
        Markup('<rect class="bar" x="{x}" y="{y}" width="{w}" height="{h}"><title>{t}</title></rect>').format(
            x=round(index * width + 0.5, 1),
            y=round(_BASE - (_BASE - 2) * count / counts.max(), 1),
            w=round(width - 1, 1),
            h=round((_BASE - 2) * count / counts.max(), 1),
            t=f"{count}",
        )
        for index, count in enumerate(counts)
        if count
    ]
    ends = [(0, low, "start")] + ([(_WIDTH, high, "end")] if high > low else [])
    texts = [
        Markup('<text class="tick" x="{x}" y="{y}" text-anchor="{a}">{t}</text>').format(
            x=x, y=_HEIGHT - 2, a=anchor, t=f"{value:.4g}{unit}"
        )
        for x, value, anchor in ends
    ]
    return _drawing("histogram", label, [*bars, *texts])


def ranges(
    rows: Sequence[tuple[float, float]],
    limits: Sequence[tuple[float, float] | None],
    margins: Sequence[float],
    *,
    label: str,
) -> list[Markup]:
    """One bar a joint: where it was, on the range that the robot allows.

    Args:
        rows: lowest and highest value of each joint.
        limits: the robot's, or None where they are not known.
        margins: share of its range by which each joint may leave it.
        label: of the drawings.
    """
    drawings = []
    for (low, high), limit, margin in zip(rows, limits, margins, strict=True):
        first, last = limit or (low, high)
        left, right = min(low, first), max(high, last)
        scale = (_WIDTH - 4) / ((right - left) or 1.0)

        def place(value: float, left: float = left, scale: float = scale) -> float:
            return round(2 + scale * (value - left), 1)

        parts = []
        if limit:
            parts.append(
                Markup('<rect class="track" x="{x}" y="5" width="{w}" height="8" rx="2"/>').format(
                    x=place(first), w=round(max(place(last) - place(first), 1), 1)
                )
            )
        slack = margin * (last - first)
        outside = limit is not None and (low < first - slack or high > last + slack)
        parts.append(
            Markup('<rect class="{c}" x="{x}" y="3" width="{w}" height="12" rx="2"/>').format(
                c="beyond" if outside else "band", x=place(low), w=round(max(place(high) - place(low), 1.5), 1)
            )
        )
        drawings.append(_drawing("range", label, parts, height=18))
    return drawings


def _drawing(kind: str, label: str, parts: Sequence[Markup], height: int = _HEIGHT) -> Markup:
    return Markup('<svg class="{k}" viewBox="0 0 {w} {h}" role="img" aria-label="{label}">{parts}</svg>').format(
        k=kind, w=_WIDTH, h=height, label=label, parts=Markup("").join(parts)
    )
