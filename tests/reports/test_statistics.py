"""Statistics of a comparison: known values, agreement with independent computations, no claim beyond the evidence."""

import itertools
import math

import numpy as np
import pytest
from scipy.stats import binom

from roboimi.errors import ConfigError
from roboimi.reports.statistics import (
    compare_pairs,
    detectable_difference,
    episodes_needed,
    holm,
    mcnemar_exact,
    mcnemar_power,
    wilson,
)


@pytest.mark.parametrize(
    ("successes", "episodes", "low", "high"),
    [(9, 10, 0.596, 0.982), (40, 50, 0.670, 0.888), (160, 200, 0.739, 0.850), (400, 500, 0.763, 0.833)],
)
def test_wilson_known_values(successes, episodes, low, high):
    interval = wilson(successes, episodes)
    assert (interval.low, interval.high) == (pytest.approx(low, abs=5e-4), pytest.approx(high, abs=5e-4))
    assert interval.rate == successes / episodes


@pytest.mark.parametrize(("successes", "episodes"), [(0, 5), (5, 5), (3, 20), (19, 20)])
def test_wilson_is_the_set_of_rates_that_the_score_test_accepts(successes, episodes):
    z = 1.959963984540054
    for bound in (wilson(successes, episodes).low, wilson(successes, episodes).high):
        if 0 < bound < 1:
            score = abs(successes / episodes - bound) / math.sqrt(bound * (1 - bound) / episodes)
            assert score == pytest.approx(z, rel=1e-6)


def test_wilson_of_nothing_says_nothing():
    assert (wilson(0, 0).low, wilson(0, 0).high) == (0.0, 1.0)
    assert math.isnan(wilson(0, 0).rate)


@pytest.mark.parametrize(("successes", "episodes"), [(6, 5), (-1, 5)])
def test_impossible_counts_are_refused(successes, episodes):
    with pytest.raises(ConfigError, match="impossible"):
        wilson(successes, episodes)


def test_mcnemar_is_the_two_sided_sign_test_on_the_discordant_seeds():
    assert mcnemar_exact(0, 0) == 1.0
    assert mcnemar_exact(5, 5) == 1.0
    assert mcnemar_exact(9, 1) == pytest.approx(2 * (1 + 10) / 2**10)
    assert mcnemar_exact(1, 9) == mcnemar_exact(9, 1)
    assert mcnemar_exact(6, 0) == pytest.approx(2 / 2**6)


def test_holm_known_values_and_order():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_never_rejects_less_than_bonferroni_nor_more_than_the_raw_test():
    values = np.random.default_rng(0).uniform(0, 0.2, (50, 5))
    for row in values:
        adjusted = np.array(holm(list(row)))
        assert np.all(adjusted >= row)
        assert np.all(adjusted <= np.minimum(1, 5 * row) + 1e-12)


def test_pairs_use_shared_seeds_only():
    outcomes = {
        "a": {0: True, 1: True, 2: True, 3: False, 9: True},
        "b": {0: True, 1: False, 2: False, 3: False, 7: True},
    }
    (pair,) = compare_pairs(outcomes, [("a", "b")])
    assert (pair.shared, pair.both, pair.only_first, pair.only_second) == (4, 1, 2, 0)
    assert pair.difference == 0.5
    assert pair.p_value == pytest.approx(0.5)
    assert pair.better is None


def test_pairing_finds_what_independent_proportions_would_miss():
    seeds = range(50)
    weak = {seed: seed % 2 == 0 for seed in seeds}
    strong = {seed: seed % 2 == 0 or seed < 18 for seed in seeds}  # solves all that weak solves, and 9 more
    (pair,) = compare_pairs({"weak": weak, "strong": strong}, [("weak", "strong")])
    assert pair.p_value == pytest.approx(2 / 2**9)
    assert pair.better == "strong"
    assert wilson(25, 50).high > wilson(34, 50).low


def test_holm_is_applied_over_the_family_given():
    outcomes = {name: {seed: seed < solved for seed in range(30)} for name, solved in (("a", 6), ("b", 0), ("c", 3))}
    alone = compare_pairs(outcomes, [("a", "b")])
    family = compare_pairs(outcomes, itertools.combinations("abc", 2))
    assert alone[0].p_value == family[0].p_value < 0.05
    assert alone[0].better == "a"
    assert family[0].better is None


def test_power_agrees_with_enumerating_every_outcome():
    episodes, first, second = 12, 0.9, 0.4
    win, loss = first * (1 - second), second * (1 - first)
    expected = 0.0
    for wins in range(episodes + 1):
        for losses in range(episodes + 1 - wins):
            if mcnemar_exact(wins, losses) <= 0.05:
                rest = binom.pmf(wins, episodes, win) * binom.pmf(losses, episodes - wins, loss / (1 - win))
                expected += rest
    assert mcnemar_power(first, second, episodes) == pytest.approx(expected, rel=1e-9)


def test_no_difference_is_found_at_most_as_often_as_alpha():
    for rate, episodes in itertools.product((0.1, 0.5, 0.9), (10, 50, 200)):
        assert mcnemar_power(rate, rate, episodes) <= 0.05


def test_five_episodes_separate_nothing():
    assert detectable_difference(0.5, 5) is None
    assert mcnemar_power(1.0, 0.0, 5) == 0.0
    assert mcnemar_power(1.0, 0.0, 6) == pytest.approx(1.0)


def test_detectable_difference_shrinks_with_episodes():
    differences = [detectable_difference(0.5, episodes) for episodes in (10, 20, 50, 100, 200, 500)]
    assert differences == sorted(differences, reverse=True)
    assert differences[2] == pytest.approx(0.31, abs=0.02)


@pytest.mark.parametrize(("rate", "difference", "normal"), [(0.85, 0.10, 199), (0.75, 0.10, 293), (0.825, 0.05, 905)])
def test_episodes_needed_is_near_the_normal_approximation(rate, difference, normal):
    needed = episodes_needed(rate, difference)
    assert normal <= needed <= 1.1 * normal
    low, high = rate - difference / 2, rate + difference / 2
    assert mcnemar_power(high, low, needed) >= 0.8
    assert mcnemar_power(high, low, needed // 2) < 0.8


def test_episodes_needed_near_the_edge_of_the_scale():
    assert episodes_needed(0.0) > 0
    assert episodes_needed(1.0) == pytest.approx(episodes_needed(0.0), abs=2)


@pytest.mark.parametrize("difference", [0.0, -0.1, 1.1, 0.0001])
def test_hopeless_differences_are_refused(difference):
    with pytest.raises(ConfigError, match="difference"):
        episodes_needed(0.5, difference)
