"""Protects the order of training: each window once an epoch, and a batch depends on nothing but its step."""

import numpy as np
import pytest

from roboimi.errors import ConfigError
from roboimi.vla.data.sampler import WindowSampler, epoch_order


@pytest.mark.parametrize("num_windows", [1, 2, 97, 5000])
def test_an_epoch_is_a_bijection(num_windows):
    assert sorted(epoch_order(num_windows, seed=1, epoch=0)) == list(range(num_windows))


def test_orders_differ_by_epoch_and_seed_and_by_nothing_else():
    np.testing.assert_array_equal(epoch_order(500, 1, 2), epoch_order(500, 1, 2))
    for seed, epoch in ((1, 3), (2, 2)):
        assert (epoch_order(500, 1, 2) != epoch_order(500, seed, epoch)).mean() > 0.9


def test_the_order_is_the_same_on_every_machine():
    assert epoch_order(10, seed=0, epoch=0).tolist() == [3, 2, 1, 8, 6, 0, 7, 4, 5, 9]


@pytest.mark.parametrize(("num_windows", "batch_size"), [(100, 8), (7, 3), (5, 16), (64, 64)])
def test_batches_run_through_whole_epochs(num_windows, batch_size):
    sampler = WindowSampler(num_windows, batch_size, seed=0)
    epochs = 5
    stream = np.concatenate([sampler.batch_indices(step) for step in range(-(-num_windows * epochs // batch_size))])
    for epoch in range(epochs):
        part = stream[epoch * num_windows : (epoch + 1) * num_windows]
        assert sorted(part) == list(range(num_windows))


def test_a_resumed_sampler_goes_on_exactly():
    whole = WindowSampler(1000, 24, seed=5)
    uninterrupted = [whole.batch_indices(step) for step in range(200)]
    for stop in (1, 41, 42, 83, 199):
        resumed = WindowSampler(1000, 24, seed=5)
        for step in range(stop, 200):
            np.testing.assert_array_equal(resumed.batch_indices(step), uninterrupted[step])


def test_asking_twice_or_backwards_changes_nothing():
    sampler = WindowSampler(50, 8, seed=0)
    forward = [sampler.batch_indices(step) for step in range(30)]
    for step in reversed(range(30)):
        np.testing.assert_array_equal(sampler.batch_indices(step), forward[step])


def test_epoch_counts_passes():
    assert WindowSampler(100, 25, seed=0).epoch(6) == 1.5


@pytest.mark.parametrize("arguments", [(0, 1, 0), (1, 0, 0), (1, 1, -1)])
def test_impossible_numbers_are_refused(arguments):
    with pytest.raises(ConfigError, match="impossible"):
        WindowSampler(*arguments)
