"""The small tables: Markdown that stays a table, a terminal table that names dead arms, metrics that are numbers."""

import io

import pytest
from rich.console import Console

from roboimi.errors import NonFiniteError
from roboimi.reports.campaign_data import collect
from roboimi.reports.markdown import render_markdown
from roboimi.reports.summary import duration, metrics, summary_document
from roboimi.reports.terminal import interval_line, render_table


@pytest.fixture
def report(made):
    made.add("privileged_state", "backbone=privileged_state", outcomes=[True] * 19 + [False])
    made.add("projection-96", outcomes=[True] * 6 + [False] * 13 + [None])
    made.add("dead", dies_in="train", error=NonFiniteError("Too many | pipes <b>."))
    return collect(made.store, made.job_id, made.experiments, "FAILED")


def printed(report, width: int) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(render_table(report))
    return console.file.getvalue()


def test_markdown_is_a_table_of_all_arms(report):
    lines = render_markdown(report).splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) == 2 + 3
    assert {len(row.replace("\\|", "").split("|")) for row in rows} == {6}
    assert "| projection-96 | 6 of 19, 1 unknown |" in "\n".join(rows)
    assert "Too many \\| pipes &lt;b&gt;." in rows[-1]
    assert lines[0].startswith("Data: ")


@pytest.mark.parametrize("width", [80, 100, 160])
def test_the_terminal_table_fits_and_names_what_is_missing(report, width):
    text = printed(report, width)
    assert max(len(line) for line in text.splitlines()) <= width
    for words in ("privileged_state", "19 of 20", "6 of 19 +1?", "no result", "Sound?", "Better?"):
        assert words in text
    assert "non-finite" in " ".join(text.replace("│", " ").split())


def test_markup_in_names_is_text(made):
    made.add("a", outcomes=[True], strips={})
    report = collect(made.store, made.job_id, [*made.experiments, {"arm": "[red]x[/red]", "overrides": []}])
    assert "[red]x[/red]" in printed(report, 160)


@pytest.mark.parametrize(
    ("low", "rate", "high", "drawn"),
    [(0.0, 0.0, 0.2, "●──·······"), (0.5, 0.75, 1.0, "·····──●──"), (0.0, 0.5, 1.0, "─────●────")],
)
def test_the_interval_as_characters(low, rate, high, drawn):
    assert interval_line(low, rate, high, width=10) == drawn


def test_metrics_are_numbers_under_names_that_do_not_change(report):
    values = metrics(report)
    assert all(isinstance(value, float) for value in values.values())
    assert values["projection-96_success_rate"] == pytest.approx(6 / 19)
    assert values["missing_arms"] == 1.0
    assert not [name for name in values if name.startswith("dead")]


def test_the_summary_is_plain_json(report, made):
    made.store.write_json("summary.json", summary_document(report))
    document = made.store.read_json("summary.json")
    assert [arm["arm"] for arm in document["arms"]] == ["privileged_state", "projection-96", "dead"]
    assert document["arms"][2]["missing"].startswith("train failed (non-finite)")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.04, "0.0 s"), (8.04, "8.0 s"), (59.4, "59 s"), (60, "1 min"), (158.2, "2 min 38 s"), (7500, "2 h 5 min")],
)
def test_durations_as_people_say_them(seconds, words):
    assert duration(seconds) == words
