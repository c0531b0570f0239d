"""Drawings: what is drawn is where the number says, and text in them is escaped."""

import re

import pytest

from roboimi.reports.charts import HEIGHT, MOST_POINTS, WIDTH, Line, interval_bar, line_chart
from roboimi.reports.statistics import wilson


def attributes(svg: str, kind: str) -> dict[str, float]:
    tag = re.search(rf'<rect class="{kind}"[^>]*>', svg)[0]
    return {name: float(value) for name, value in re.findall(r'\b(x|width)="([\d.]+)"', tag)}


@pytest.mark.parametrize(("successes", "episodes"), [(0, 20), (10, 20), (20, 20), (7, 50)])
def test_the_bar_spans_the_interval(successes, episodes):
    success = wilson(successes, episodes)
    svg = interval_bar(success, 3)
    band, rate = attributes(svg, "band"), attributes(svg, "rate")
    assert (band["x"] - 2) / 196 == pytest.approx(success.low, abs=0.001)
    assert (band["x"] + band["width"] - 2) / 196 == pytest.approx(success.high, abs=0.001)
    assert (rate["x"] + 1.5 - 2) / 196 == pytest.approx(success.rate, abs=0.001)
    assert 'class="interval c3"' in svg


def points_of(svg: str) -> list[tuple[float, float]]:
    text = re.search(r'points="([^"]*)"', svg)[1]
    return [tuple(map(float, pair.split(","))) for pair in text.split()]


def test_a_falling_loss_falls_on_the_page_in_equal_steps_for_equal_factors():
    svg = line_chart([Line(0, "a", [(0, 1.0), (1, 0.1), (2, 0.01)])], label="l", x_label="x", logarithmic=True)
    (x0, y0), (x1, y1), (x2, y2) = points_of(svg)
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y1 - y0 == pytest.approx(y2 - y1, abs=0.2)
    assert 0 < y0 < y2 < HEIGHT
    assert x2 < WIDTH
    for tick in ("1", "0.1", "0.01"):
        assert f">{tick}</text>" in svg


def test_shares_fill_the_whole_scale():
    svg = line_chart([Line(0, "a", [(0, 0.0), (10, 1.0)])], label="l", x_label="x", marks=True)
    (_, bottom), (_, top) = points_of(svg)
    assert ">0 %</text>" in svg
    assert ">100 %</text>" in svg
    assert bottom > top
    assert svg.count("<circle") == 2


def test_values_that_cannot_be_drawn_are_left_out():
    points = [(0, float("nan")), (1, 0.0), (2, -1.0), (3, 0.5), (4, float("inf"))]
    svg = line_chart([Line(0, "a", points)], label="l", x_label="x", logarithmic=True)
    assert len(points_of(svg)) == 1
    assert line_chart([Line(0, "a", points[:3])], label="l", x_label="x", logarithmic=True) == ""
    assert line_chart([], label="l", x_label="x") == ""


def test_long_curves_are_thinned_and_keep_their_end():
    points = [(step, 1.0 / (1 + step)) for step in range(10_001)]
    drawn = points_of(line_chart([Line(0, "a", points)], label="l", x_label="x", logarithmic=True))
    whole = points_of(line_chart([Line(0, "a", points[-1:])], label="l", x_label="x", logarithmic=True))
    assert len(drawn) <= MOST_POINTS + 1
    assert drawn[-1][0] == whole[-1][0]


@pytest.mark.parametrize("last", [1, 7, 50, 2000, 50_000])
def test_there_are_a_few_round_ticks_on_the_x_axis(last):
    svg = line_chart([Line(0, "a", [(0, 0.5), (last, 0.5)])], label="l", x_label="x")
    ticks = re.findall(r'text-anchor="middle">([\d.e+]+)</text>', svg)
    assert 2 <= len(ticks) <= 6
    assert float(ticks[-1]) <= last


def test_names_are_escaped():
    svg = line_chart([Line(0, "<b>&", [(0, 0.5), (1, 0.5)])], label='"<i>', x_label="<u>")
    assert "<b>" not in svg
    assert "<i>" not in svg
    assert "<u>" not in svg
