"""Min-max normalisation: the range, the inverse, dimensions that stand still, and what happens before statistics."""

import pytest
import torch

from roboimi.errors import DataError
from roboimi.vla.models.normalizer import MinMaxNormalizer

STATISTICS = {"min": [-2.0, 0.0, 0.3], "max": [4.0, 1.0, 0.30001], "mean": [0.5, 0.6, 0.300005]}


def _fitted():
    normalizer = MinMaxNormalizer(3).double()
    normalizer.fit(STATISTICS)
    return normalizer


def test_the_train_range_becomes_minus_one_to_one_and_back():
    normalizer = _fitted()
    low, high = (torch.tensor(STATISTICS[key], dtype=torch.float64) for key in ("min", "max"))
    torch.testing.assert_close(normalizer(low)[:2], -torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(normalizer(high)[:2], torch.ones(2, dtype=torch.float64))
    raw = torch.randn(4, 5, 3, dtype=torch.float64) * 3
    torch.testing.assert_close(normalizer.inverse(normalizer(raw)), raw, rtol=0, atol=1e-12)


def test_a_dimension_that_stands_still_is_not_blown_up():
    normalizer = _fitted()
    assert normalizer.scale[2] == 1
    raw = torch.tensor([0.0, 0.0, 0.3 + 2e-4], dtype=torch.float64)
    assert normalizer(raw)[2].abs() < 1e-3


def test_targets_outside_the_train_range_are_not_clamped():
    assert _fitted()(torch.tensor([10.0, 0.0, 0.0], dtype=torch.float64))[0] == 3


def test_an_unfitted_normaliser_gives_nan_and_never_raw_numbers():
    normalizer = MinMaxNormalizer(2)
    assert normalizer(torch.ones(2)).isnan().all()
    assert normalizer.inverse(torch.ones(2)).isnan().all()


def test_statistics_travel_in_the_state_dict():
    other = MinMaxNormalizer(3).double()
    other.load_state_dict(_fitted().state_dict())
    raw = torch.randn(2, 3, dtype=torch.float64)
    torch.testing.assert_close(other(raw), _fitted()(raw), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("change", "words"),
    [({"min": [0.0], "max": [1.0], "mean": [0.5]}, "1 dimensions"), ({"max": [1.0, float("inf"), 1.0]}, "not finite")],
)
def test_statistics_that_do_not_fit_are_refused(change, words):
    with pytest.raises(DataError, match=words):
        MinMaxNormalizer(3).fit({**STATISTICS, **change})
