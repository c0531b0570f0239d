"""Settings are compared by their trainings: one training says nothing of a setting, and start positions count too."""

import numpy as np
import pytest
from scipy.stats import ttest_ind

from roboimi.reports.campaign_data import collect
from roboimi.reports.findings import DOUBTFUL, GOOD, verdict
from roboimi.reports.markdown import render_markdown
from roboimi.reports.report import render_html
from roboimi.reports.settings import crossed_test, group_settings, setting_name
from roboimi.reports.summary import metrics, summary_document

SEEDS = 60


def add_setting(made, name, override, shares, seed=0):
    """One arm a training; `shares` are their true success rates."""
    rng = np.random.default_rng(seed)
    hard = rng.uniform(size=SEEDS)
    for index, share in enumerate(shares):
        noise = rng.normal(0, 0.05, SEEDS)
        made.add(
            f"{name}.seed-{index}",
            override,
            f"train.seed={index}",
            outcomes=[bool(value) for value in hard + noise < share],
        )


def report_of(made):
    return collect(made.store, made.job_id, made.experiments)


def text(finding):
    return " ".join((finding.headline, *finding.sentences))


def test_the_training_seed_is_no_part_of_a_setting(made):
    add_setting(made, "wide", "backbone.per_view_output_dim=192", (0.8, 0.9, 0.85))
    add_setting(made, "narrow", "backbone.per_view_output_dim=96", (0.3, 0.4, 0.35))
    settings = group_settings(report_of(made).arms)
    assert [(item.name, len(item.rates)) for item in settings] == [("wide", 3), ("narrow", 3)]
    assert settings[0].arms == ("wide.seed-0", "wide.seed-1", "wide.seed-2")
    assert setting_name("projection-96.seed-12") == "projection-96"
    assert setting_name("projection-96") == "projection-96"


def test_settings_that_differ_more_than_their_trainings_are_separated(made):
    add_setting(made, "wide", "b=1", (0.85, 0.9, 0.88))
    add_setting(made, "narrow", "b=2", (0.3, 0.4, 0.35))
    report = report_of(made)
    finding = verdict(report)
    assert finding.level == GOOD
    assert finding.headline == "wide is better than narrow."
    assert "3 and 3 trainings on 60 shared seeds" in text(finding)
    assert "checkpoints and not of the settings" not in text(finding)
    assert "none was chosen by its success" in text(finding)
    assert report.candidate_pairs == ()


def test_trainings_that_differ_as_much_as_settings_do_separate_nothing(made):
    """Any two checkpoints here are told apart by McNemar; the settings are not, and that is the answer."""
    add_setting(made, "wide", "b=1", (0.2, 0.9, 0.6))
    add_setting(made, "narrow", "b=2", (0.1, 0.7, 0.3))
    finding = verdict(report_of(made))
    assert finding.level == DOUBTFUL
    assert finding.headline == "The evidence does not separate wide and narrow."
    assert "more trainings narrow it" in text(finding)


def test_one_training_each_speaks_of_these_checkpoints(made):
    for name, share in (("a", 0.2), ("b", 0.9)):
        made.add(name, f"b={name}", outcomes=[bool(value) for value in np.linspace(0, 1, 50) < share])
    words = text(verdict(report_of(made)))
    assert "these two checkpoints and not of the settings" in words


def test_a_setting_trained_once_is_left_out_of_the_others(made):
    add_setting(made, "wide", "b=1", (0.85, 0.9))
    add_setting(made, "narrow", "b=2", (0.3, 0.4))
    made.add("single", "b=3", outcomes=[True] * SEEDS)
    words = text(verdict(report_of(made)))
    assert "single is left out" in words
    assert words.startswith("wide is better than narrow.")


def test_several_trainings_of_one_setting_are_no_comparison(made):
    add_setting(made, "wide", "b=1", (0.85, 0.9, 0.6))
    finding = verdict(report_of(made))
    assert finding.headline == "There is nothing to compare wide with."
    assert "3 trainings" in text(finding)


def test_a_training_that_died_is_named(made):
    add_setting(made, "wide", "b=1", (0.85, 0.9))
    made.add("wide.seed-2", "b=1", "train.seed=2", dies_in="train")
    add_setting(made, "narrow", "b=2", (0.3, 0.4))
    report = report_of(made)
    assert report.settings[0].missing == ("wide.seed-2",)
    assert "wide.seed-2 has no result" in text(verdict(report))
    page = render_html(report)
    assert "no result: wide.seed-2" in page
    assert "Settings" in page


def test_unknown_episodes_are_said_to_be_in_no_rate(made):
    made.add("a", "b=1", outcomes=[True, False, None, None])
    made.add("b", "b=2", outcomes=[True, True, False, True])
    assert "2 episodes of a ended unknown: they are in no rate and in no test." in text(verdict(report_of(made)))


def test_settings_are_in_every_form_of_the_report(made):
    add_setting(made, "wide", "b=1", (0.85, 0.9))
    add_setting(made, "narrow", "b=2", (0.3, 0.4))
    report = report_of(made)
    document = summary_document(report)
    assert [item["name"] for item in document["settings"]] == ["wide", "narrow"]
    assert document["setting_pairs"][0]["better"] == "wide"
    assert metrics(report)["wide_trainings"] == 2.0
    assert "wide is better than narrow" in render_markdown(report)


def test_without_variation_between_start_positions_it_is_welchs_test():
    """Every seed sees the same difference, so only the trainings vary: SciPy's Welch test has the same numbers."""
    first = np.array([[1.0] * 8, [1.0] * 8, [0.0] * 8, [1.0] * 8])
    second = np.array([[0.0] * 8, [1.0] * 8, [0.0] * 8])
    difference, error, freedom, p_value = crossed_test(first, second)
    welch = ttest_ind(first.mean(axis=1), second.mean(axis=1), equal_var=False)
    assert p_value == pytest.approx(welch.pvalue)
    assert difference / error == pytest.approx(welch.statistic)
    assert freedom == pytest.approx(welch.df)


def test_identical_trainings_do_not_make_a_few_start_positions_certain():
    """Three equal checkpoints of each setting are one draw of start positions, not three."""
    first, second = np.ones((3, 20)), np.ones((3, 20))
    second[:, :2] = 0
    *_, p_value = crossed_test(first, second)
    assert 0.05 < p_value < 0.5


def test_nothing_that_varies_separates_nothing():
    assert crossed_test(np.ones((3, 9)), np.ones((3, 9)))[3] == 1.0


def test_equal_settings_are_seldom_called_different():
    """Trainings and start positions both vary; under the null at most 5 % and a bit of 2,000 campaigns separate."""
    rng, wrong = np.random.default_rng(0), 0
    for _ in range(2000):
        hard = rng.normal(0, 1.0, 50)
        groups = []
        for _ in range(2):
            taste = rng.normal(0, 0.4, 50)
            skill = rng.normal(0, 0.4, 3)
            groups.append((rng.normal(size=(3, 50)) < 0.5 + skill[:, None] + hard + taste).astype(float))
        wrong += crossed_test(*groups)[3] < 0.05
    assert wrong / 2000 < 0.06
