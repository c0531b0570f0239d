"""Sentences of the report: no claim without the evidence, and a plain answer where there is some."""

import numpy as np
import pytest

from roboimi.errors import NonFiniteError
from roboimi.reports.campaign_data import collect
from roboimi.reports.findings import BAD, DOUBTFUL, GOOD, first_line, soundness, standin_note, verdict


def solved(count: int, of: int = 50) -> list[bool]:
    return [index < count for index in range(of)]


@pytest.fixture
def report_of(made):
    """`report_of(a=12, blind=3)`: arms that solve that many of 50 seeds; `control` and `blind` are reference arms."""

    def build(**counts: int):
        for name, count in counts.items():
            backbone = {"control": "backbone=privileged_state", "blind": "backbone=blind"}.get(name, "head=small")
            made.add(name, backbone, outcomes=solved(count))
        return collect(made.store, made.job_id, made.experiments)

    return build


def text(finding) -> str:
    return " ".join([finding.headline, *finding.sentences]).replace("\u00a0", " ")


@pytest.mark.parametrize(
    ("control", "level", "headline"),
    [
        (48, GOOD, "Yes."),
        (30, DOUBTFUL, "Probably"),
        (10, BAD, "Not yet"),
        (0, BAD, "No: even the control arm fails."),
    ],
)
def test_soundness_follows_the_control_arm(report_of, control, level, headline):
    finding = soundness(report_of(control=control, blind=2, a=20))
    assert finding.level == level
    assert finding.headline.startswith(headline)
    assert f"{control} of 50" in text(finding)


def test_without_a_control_arm_nothing_is_established(report_of):
    finding = soundness(report_of(a=40))
    assert finding.level == DOUBTFUL
    assert "no control arm" in finding.headline
    assert "no blind arm" in text(finding)


def test_a_control_arm_that_died_is_not_a_failing_one(made):
    made.add("privileged_state", dies_in="train", error=NonFiniteError("Too many steps."))
    finding = soundness(collect(made.store, made.job_id, made.experiments))
    assert finding.level == DOUBTFUL
    assert "train failed (non-finite): Too many steps." in text(finding)


def test_looking_helps_only_where_blind_is_beaten(report_of):
    words = text(soundness(report_of(control=50, blind=10, a=11, b=45)))
    assert "b is better than blind: looking helped." in words
    assert "a is not shown to be better than blind." in words


def test_a_clear_winner_is_called_better(report_of):
    finding = verdict(report_of(control=50, blind=2, a=10, b=40))
    assert finding.level == GOOD
    assert finding.headline == "b is better than a."
    assert "40 against 10 of 50 shared seeds" in text(finding)
    assert "trained once" in text(finding)


def test_a_small_difference_is_not_called_one(report_of):
    finding = verdict(report_of(control=50, blind=2, a=20, b=24))
    assert finding.level == DOUBTFUL
    assert finding.headline == "The evidence does not separate b and a."
    words = text(finding)
    assert "not separable: 24 against 20" in words
    assert "With 50 shared seeds, a difference of 30 points is found in 4 of 5 cases" in words
    assert "to tell 10 points apart takes about 410 episodes an arm" in words


def test_two_leaders_and_one_that_is_worse(report_of):
    finding = verdict(report_of(control=50, blind=0, a=40, b=42, c=10))
    assert finding.headline == "The evidence does not separate b and a. Shown to be worse: c."


def test_five_episodes_are_said_to_separate_nothing(made):
    for name, count in (("a", 0), ("b", 5)):
        made.add(name, outcomes=solved(count, 5))
    finding = verdict(collect(made.store, made.job_id, made.experiments))
    assert finding.headline == "The evidence does not separate b and a."
    assert "No difference at all can be separated with 5 shared seeds" in text(finding)


def test_a_failing_control_arm_takes_the_verdict_its_weight(report_of):
    finding = verdict(report_of(control=1, blind=0, a=5, b=40))
    assert finding.level == BAD
    assert "The control arm fails" in text(finding)


def test_nothing_is_ranked_where_nothing_succeeded(report_of):
    finding = verdict(report_of(control=50, blind=0, a=0, b=0))
    assert finding.headline == "No candidate succeeded in any episode, so there is nothing to rank."
    assert "a 2 at best, 2.0 on average" in text(finding)


@pytest.mark.parametrize(
    ("counts", "says"), [({"a": 7}, "nothing to compare a with"), ({"control": 9, "blind": 1}, "reference arms only")]
)
def test_too_few_arms_are_said_to_be(report_of, counts, says):
    assert says in verdict(report_of(**counts)).headline


def test_no_candidate_with_a_result(made):
    made.add("a", dies_in="train")
    assert verdict(collect(made.store, made.job_id, made.experiments)).headline == (
        "There is nothing to compare: no candidate has a result."
    )


def test_the_verdict_names_the_candidates_it_lacks(made):
    made.add("a", outcomes=solved(10))
    made.add("b", outcomes=solved(40))
    made.add("c", dies_in="train", error=NonFiniteError("Too many steps."))
    words = text(verdict(collect(made.store, made.job_id, made.experiments)))
    assert words.startswith("b is better than a.")
    assert "c has no result: train failed (non-finite): Too many steps." in words


def test_candidates_without_a_shared_seed(made):
    made.add("a", outcomes=[True, None])
    made.add("b", outcomes=[None, True])
    assert "share no seed" in text(verdict(collect(made.store, made.job_id, made.experiments)))


def test_the_first_line_names_data_and_encoder(full):
    line = first_line(collect(full.store, full.job_id, full.experiments))
    assert line.startswith(
        "Data: 100 demonstrations from datasets/transfer_cube (sha256 3f3f3f3f3f3f). Encoder: stand-in"
    )


def test_a_standin_is_never_taken_for_siglip2(full):
    note = standin_note(collect(full.store, full.job_id, full.experiments))
    assert "not SigLIP2" in note


def test_the_real_encoder_needs_no_note(unmade):
    unmade.encoder = "google/siglip2-base-patch16-256@3f9f96cb90da5dbc758b01813f2f6f1aee24c1ab"
    unmade.shared_steps()
    report = collect(unmade.store, unmade.job_id, [])
    assert standin_note(report) == ""
    assert "google/siglip2-base-patch16-256 at revision 3f9f96cb90da" in first_line(report)


def test_the_verdict_does_not_overreach_under_the_null(made):
    """Of 60 pairs of equal arms at most a few are called different."""
    rng = np.random.default_rng(3)
    wrong = 0
    for _ in range(60):
        from roboimi.reports.statistics import compare_pairs

        outcomes = {name: dict(enumerate((rng.uniform(size=50) < 0.5).tolist())) for name in "ab"}
        wrong += compare_pairs(outcomes, [("a", "b")])[0].separated
    assert wrong <= 6
