"""Protects the linear probe: it finds what is there, does not find what is not, and never tests on what it fitted."""

import numpy as np
import pytest

from roboimi.errors import DataError
from roboimi.vla.linear_probe import linear_probe


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def test_a_linear_code_is_found_among_more_features_than_rows(rng):
    groups = np.repeat(np.arange(20), 6)
    targets = rng.uniform(-0.1, 0.1, (120, 3))
    features = targets @ rng.normal(size=(3, 300)) + 0.01 * rng.normal(size=(120, 300))
    result = linear_probe(features, targets, groups)
    assert min(result.r2) > 0.9
    assert all(error < 0.3 * chance for error, chance in zip(result.median_error, result.chance_error, strict=True))
    assert result.train_rows + result.test_rows == 120


def test_noise_explains_nothing(rng):
    groups = np.repeat(np.arange(20), 6)
    result = linear_probe(rng.normal(size=(120, 300)), rng.uniform(-0.1, 0.1, (120, 2)), groups)
    assert max(result.r2) < 0.1


def test_features_that_only_name_the_episode_explain_nothing(rng):
    # Frames of an episode share both; a split by frame would find a perfect probe here.
    groups = np.repeat(np.arange(24), 10)
    names, places = rng.normal(size=(24, 64)), rng.uniform(-0.1, 0.1, (24, 2))
    features = names[groups] + 0.01 * rng.normal(size=(240, 64))
    result = linear_probe(features, places[groups], groups)
    assert max(result.r2) < 0.3


def test_a_target_that_never_varies_counts_as_unexplained(rng):
    groups = np.repeat(np.arange(8), 5)
    targets = np.column_stack([rng.normal(size=40), np.full(40, 0.05)])
    result = linear_probe(targets[:, :1] @ np.ones((1, 4)) + 0.01 * rng.normal(size=(40, 4)), targets, groups)
    assert result.r2[0] > 0.9
    assert result.r2[1] == 0.0


def test_a_feature_that_was_constant_in_the_fitted_rows_is_ignored(rng):
    groups = np.repeat(np.arange(12), 5)
    targets = rng.normal(size=(60, 1))
    features = np.column_stack([targets[:, 0], np.zeros(60)])
    spoiled = features.copy()
    result = linear_probe(features, targets, groups)
    held_out = np.random.default_rng(0).permutation(np.unique(groups))[:3]
    spoiled[np.isin(groups, held_out), 1] = 1e6
    assert linear_probe(spoiled, targets, groups).r2 == result.r2


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(rng, value):
    features = rng.normal(size=(40, 4))
    features[3, 1] = value
    with pytest.raises(DataError, match="not finite"):
        linear_probe(features, rng.normal(size=(40, 1)), np.repeat(np.arange(8), 5))


def test_too_few_episodes_are_refused(rng):
    with pytest.raises(DataError, match="3 episodes"):
        linear_probe(rng.normal(size=(30, 4)), rng.normal(size=(30, 1)), np.repeat(np.arange(3), 10))
