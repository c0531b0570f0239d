"""The HTML page: one file without a network, small, safe against hostile text, and written whatever died."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from roboimi.errors import NonFiniteError
from roboimi.reports import report as report_module
from roboimi.reports.campaign_data import collect
from roboimi.reports.report import render_html, write_report

VOID = {"meta", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """Checks that every tag is closed, and collects attributes and text."""

    def __init__(self, html: str):
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def page_of(campaign, status="") -> tuple[str, Page]:
    html = render_html(collect(campaign.store, campaign.job_id, campaign.experiments, status))
    page = Page(html)
    assert page.open == []
    return html, page


def test_the_page_begins_with_data_encoder_and_standin(full):
    _, page = page_of(full, "SUCCEEDED")
    start = page.text.partition("Campaign")[2]
    order = ["Data: 100 demonstrations", "The encoder is a stand-in", "Campaign 2026", "Is the pipeline sound?"]
    order += [
        "Which arm is better?",
        "Arms",
        "privileged_state",
        "blind",
        "projection-96",
        "projection-192",
        "Seed by seed",
    ]
    order += ["Learning curves", "Episodes", "Steps", "To reproduce"]
    positions = []
    for words in order:
        positions.append(start.index(words, positions[-1] if positions else 0))
    assert positions == sorted(positions)


def test_the_page_needs_nothing_from_outside(full):
    html, page = page_of(full)
    loading = {(tag, name, value[:30]) for tag, name, value in page.attributes if name in {"src", "href", "srcset"}}
    assert loading
    assert all(value.startswith("data:image/webp;base64,") for _, _, value in loading)
    assert not re.search(r"https?://|@import|url\(|//cdn", html)
    assert not {"script", "link", "iframe", "object", "embed", "form"} & {tag for tag, *_ in page.attributes}
    assert "<script" not in html
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]


def test_each_arm_has_its_figures(full):
    report = collect(full.store, full.job_id, full.experiments)
    _, page = page_of(full)
    for arm in report.arms:
        assert f"{arm.success.successes} of {arm.success.episodes}" in page.text
    assert page.text.count("2 min 38 s") == 4
    bars = [
        value for tag, name, value in page.attributes if tag == "svg" and name == "aria-label" and "interval" in value
    ]
    assert len(bars) == 4
    strips = [value for tag, name, value in page.attributes if tag == "img" and name == "alt"]
    assert len(strips) == 8


def test_a_dead_arm_is_named_with_its_reason_and_the_others_are_whole(made):
    made.add("alive", outcomes=[True] * 3 + [False] * 7)
    made.add("dead", dies_in="train", error=NonFiniteError("The loss was not finite in 11 steps."))
    _, page = page_of(made, "FAILED")
    assert "No result: train failed (non-finite): The loss was not finite in 11 steps." in page.text
    assert "3 of 10" in page.text
    assert "1 of 2 arms have a result" in page.text


def test_a_campaign_of_which_nothing_ran_has_a_page(unmade):
    html = render_html(collect(unmade.store, unmade.job_id, [{"arm": "a", "overrides": []}], "CANCELED"))
    assert "train never started because the campaign ended as CANCELED" in Page(html).text


def test_hostile_text_stays_text(made):
    evil = '"><script>alert(1)</script><img src=x onerror=alert(1)>{{ 7*7 }}'
    made.add("a", f"+note={evil}", outcomes=[True, False])
    made.add("b", dies_in="train", error=NonFiniteError(evil))
    made.step("smoke", encoder="standin", result=evil, warnings=[evil])
    made.arms[0].name = "a"
    report = collect(made.store, made.job_id, [*made.experiments, {"arm": evil, "overrides": [evil]}], evil)
    html = render_html(report)
    page = Page(html)
    assert page.open == []
    assert "<script" not in html
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert {value for tag, name, value in page.attributes if tag == "img" and name == "src"} == {
        value
        for tag, name, value in page.attributes
        if tag == "img" and name == "src" and value.startswith("data:image")
    }
    assert "{{ 7*7 }}" in page.text
    assert page.text.count("alert(1)") >= 5


def test_the_page_stays_small_however_many_pictures_there_are(made, webp):
    big = webp + b"\0" * 700_000
    for index in range(6):
        made.add(f"arm{index}", outcomes=[True, False], strips={"success": big, "failure": big})
    html, page = page_of(made)
    assert len(html.encode()) < 5_000_000
    shown = [value for tag, name, value in page.attributes if tag == "img" and name == "src"]
    assert 1 <= len(shown) <= 5
    assert page.text.count("Left out to keep this page small") == 12 - len(shown)


def test_the_page_fits_light_dark_and_narrow(full):
    html, _ = page_of(full)
    assert "prefers-color-scheme: dark" in html
    assert "max-width: 720px" in html
    assert 'name="viewport"' in html


def test_steps_show_their_time_and_their_end(made):
    made.add("a", outcomes=[True], seconds=(3725.0, 42.0))
    made.add("b", dies_in="train")
    _, page = page_of(made)
    assert "train 1 h 2 min" in page.text
    assert "evaluate 42 s" in page.text
    assert "failed · 2 min 40 s" in page.text
    assert "evaluate no record" in page.text


def test_a_recognised_step_is_marked(made):
    made.add("a", outcomes=[True])
    made.step("train", "a", training=f"trainings/{1:032x}", recognised=True)
    _, page = page_of(made)
    assert "train found finished" in page.text


def test_writing_replaces_the_page_whole_and_leaves_nothing_else(full):
    report = collect(full.store, full.job_id, full.experiments)
    path = write_report(report, full.store)
    path.write_text("older")
    write_report(report, full.store)
    assert path.read_text() == render_html(report)
    names = full.store.list(f"campaigns/{full.job_id}")
    assert [name for name in names if "report" in name or "writing" in name] == ["report.html", "report.json"]
    document = json.loads((path.parent / "report.json").read_text())
    assert [arm["arm"] for arm in document["arms"]] == ["privileged_state", "blind", "projection-96", "projection-192"]
    assert document["verdict"]["headline"]


def test_a_failing_template_leaves_the_older_page(full, monkeypatch):
    report = collect(full.store, full.job_id, full.experiments)
    path = write_report(report, full.store)
    before = path.read_text()
    monkeypatch.setattr(report_module, "render_html", lambda report: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_report(report, full.store)
    assert path.read_text() == before
    assert [name for name in full.store.list(f"campaigns/{full.job_id}") if name.startswith(".")] == []


def test_reports_need_no_deep_learning_library():
    code = (
        "import sys\n"
        "import roboimi.reports.report, roboimi.reports.markdown, roboimi.reports.terminal\n"
        "heavy = {'torch', 'transformers', 'mujoco', 'kfp'} & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr
