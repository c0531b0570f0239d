"""Small inline SVG: an interval on a 0 to 100 % scale, stages reached, and learning curves.

Colours are CSS classes of the page (`c0`, `c1`, ... for the arms), so that one drawing serves light and dark. All text
goes through `Markup.format`, which escapes it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from roboimi.reports.arm_data import ArmReport
from roboimi.reports.statistics import Proportion

COLOURS = 8
"""How many colour classes the page has."""

MOST_POINTS = 240

WIDTH, HEIGHT = 460, 220
LEFT, RIGHT, TOP, BOTTOM = 46, 22, 10, 34


@dataclass(frozen=True)
class Line:
    """One curve: which colour, its name, and its points (x, y)."""

    colour: int
    name: str
    points: Sequence[tuple[float, float]]


def interval_bar(success: Proportion, colour: int) -> Markup:
    """The observed rate as a dot on its Wilson interval; the scale runs from 0 to 100 %."""
    low, rate, high = (2 + 196 * value for value in (success.low, success.rate, success.high))
    text = f"{100 * success.rate:.0f} %, 95 % interval {100 * success.low:.0f} to {100 * success.high:.0f} %"
    return Markup(
        '<svg class="interval c{c}" viewBox="0 0 200 18" preserveAspectRatio="none" role="img" aria-label="{text}">'
        "<title>{text}</title>"
        '<rect class="track" x="2" y="8" width="196" height="2"/>{ticks}'
        '<rect class="band" x="{low}" y="4" width="{width}" height="10" rx="2"/>'
        '<rect class="rate" x="{rate}" y="1" width="3" height="16" rx="1"/></svg>'
    ).format(
        c=colour,
        text=text,
        ticks=Markup("").join(
            Markup('<rect class="track" x="{x}" y="6" width="1" height="6"/>').format(x=round(2 + 196 * share - 0.5, 1))
            for share in (0, 0.25, 0.5, 0.75, 1)
        ),
        low=round(low, 1),
        width=round(max(high - low, 1.0), 1),
        rate=round(rate - 1.5, 1),
    )


def stage_bars(arm: ArmReport, stages: int, colour: int) -> Markup:
    """One bar a stage: the share of the episodes that reached it."""
    bars, step = [], 22
    for stage in range(1, stages + 1):
        share = arm.reached(stage)
        text = f"stage {stage} reached in {100 * share:.0f} % of the episodes"
        bars.append(
            Markup(
                '<g><title>{text}</title><rect class="empty" x="{x}" y="1" width="18" height="20"/>'
                '<rect class="full" x="{x}" y="{y}" width="18" height="{h}"/></g>'
            ).format(text=text, x=step * (stage - 1), y=round(21 - 20 * share, 1), h=round(20 * share, 1))
        )
    return Markup(
        '<svg class="stages c{c}" viewBox="0 0 {w} 22" width="{w}" height="22" role="img">{bars}</svg>'
    ).format(c=colour, w=step * stages - 4, bars=Markup("").join(bars))


def seed_cells(arm: ArmReport, seeds: Sequence[int], unknown: frozenset[int], colour: int) -> Markup:
    """One cell a seed: filled where the arm succeeded, empty where it failed, dashed where the outcome is unknown."""
    cells, step = [], 12
    for column, seed in enumerate(seeds):
        kind = "unknown" if seed in unknown else "yes" if arm.outcomes.get(seed) else "no"
        words = {"unknown": "unknown", "yes": "success", "no": "failure"}[kind]
        cells.append(
            Markup('<rect class="{k}" x="{x}" y="1" width="10" height="10" rx="1.5"><title>{t}</title></rect>').format(
                k=kind, x=step * column + 1, t=f"seed {seed}: {words}"
            )
        )
    return Markup(
        '<svg class="cells c{c}" viewBox="0 0 {w} 12" style="max-width:{most}px" role="img" aria-label="{text}">'
        "{cells}</svg>"
    ).format(
        c=colour,
        w=step * len(seeds),
        most=16 * len(seeds),
        text=f"{arm.name}: {sum(arm.outcomes.values())} of {len(arm.outcomes)} seeds succeeded",
        cells=Markup("").join(cells),
    )


def line_chart(
    lines: Sequence[Line], *, label: str, x_label: str, logarithmic: bool = False, marks: bool = False
) -> Markup:
    """Curves over a shared x axis that starts at 0.

    Args:
        lines: the curves; empty ones are left out.
        label: of the drawing, for those who cannot see it.
        x_label: below the axis.
        logarithmic: y in powers of ten (values above 0 only); else y runs from 0 to 1 and is shown in %.
        marks: also a dot on each point.
    """
    lines = [Line(line.colour, line.name, _usable(line.points, logarithmic)) for line in lines]
    lines = [line for line in lines if line.points]
    if not lines:
        return Markup("")
    last = max(x for line in lines for x, _ in line.points) or 1
    values = [y for line in lines for _, y in line.points]
    low, high, ticks = _log_scale(min(values), max(values)) if logarithmic else (0.0, 1.0, _SHARES)

    def place(x: float, y: float) -> tuple[float, float]:
        height = (math.log10(y) - low) / (high - low) if logarithmic else (y - low) / (high - low)
        return (
            round(LEFT + (WIDTH - LEFT - RIGHT) * x / last, 1),
            round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * height, 1),
        )

    parts = [_horizontal(place(0, value)[1], text) for value, text in ticks]
    parts += [_x_tick(place(x, ticks[0][0])[0], text) for x, text in _x_ticks(last)]
    parts.append(_text("axis", (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 2, x_label, "middle"))
    for line in lines:
        places = [place(x, y) for x, y in line.points]
        path = " ".join(f"{x},{y}" for x, y in places)
        parts.append(
            Markup('<polyline class="curve c{c}" points="{path}"><title>{name}</title></polyline>').format(
                c=line.colour, path=path, name=line.name
            )
        )
        if marks:
            parts += [
                Markup('<circle class="dot c{c}" cx="{x}" cy="{y}" r="3.5"/>').format(c=line.colour, x=x, y=y)
                for x, y in places
            ]
    return Markup('<svg class="chart" viewBox="0 0 {w} {h}" role="img" aria-label="{label}">{parts}</svg>').format(
        w=WIDTH, h=HEIGHT, label=label, parts=Markup("").join(parts)
    )


_SHARES = [(share, f"{100 * share:.0f} %") for share in (0.0, 0.25, 0.5, 0.75, 1.0)]


def _usable(points: Sequence[tuple[float, float]], logarithmic: bool) -> list[tuple[float, float]]:
    """Finite points, thinned to what can be seen; the last one is always kept."""
    kept = [(x, y) for x, y in points if math.isfinite(y) and (y > 0 or not logarithmic)]
    stride = max(1, math.ceil(len(kept) / MOST_POINTS))
    return kept if stride == 1 else [*kept[:-1:stride], kept[-1]]


def _log_scale(smallest: float, largest: float) -> tuple[float, float, list[tuple[float, str]]]:
    """Range in log10 and ticks at 1, 2, 5 times powers of ten, or at powers of ten alone over a wide range."""
    low, high = math.log10(smallest), math.log10(largest)
    pad = max(0.05, 0.05 * (high - low))
    low, high = low - pad, high + pad
    factors = (1, 2, 5) if high - low < 2 else (1,)
    powers = range(math.floor(low), math.ceil(high) + 1)
    ticks = [factor * 10.0**power for power in powers for factor in factors]
    shown = [(tick, f"{tick:.3g}") for tick in ticks if low <= math.log10(tick) <= high]
    return low, high, shown or [(largest, f"{largest:.3g}")]


def _x_ticks(last: float) -> list[tuple[float, str]]:
    step = 10 ** math.floor(math.log10(last))
    step = next(size for size in (step / 5, step / 2, step, 2 * step, 5 * step) if last / size <= 5)
    return [(index * step, f"{index * step:g}") for index in range(int(last / step) + 1)]


def _horizontal(y: float, text: str) -> Markup:
    grid = Markup('<line class="grid" x1="{a}" x2="{b}" y1="{y}" y2="{y}"/>').format(a=LEFT, b=WIDTH - RIGHT, y=y)
    return grid + _text("tick", LEFT - 6, y + 4, text, "end")


def _x_tick(x: float, text: str) -> Markup:
    return _text("tick", x, HEIGHT - BOTTOM + 14, text, "middle")


def _text(kind: str, x: float, y: float, text: str, anchor: str) -> Markup:
    return Markup('<text class="{kind}" x="{x}" y="{y}" text-anchor="{anchor}">{text}</text>').format(
        kind=kind, x=round(x, 1), y=round(y, 1), anchor=anchor, text=text
    )
