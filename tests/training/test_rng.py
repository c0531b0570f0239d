"""The global generators survive a round trip through tensors, and step seeds are what they are for ever."""

import random

import numpy as np
import pytest
import safetensors.torch
import torch

from roboimi.vla.training.rng import capture_rng, preserved_rng, restore_rng, step_seed


def draw():
    return [random.random(), random.gauss(0, 1), np.random.rand(), np.random.standard_normal(), torch.rand(1).item()]


@pytest.mark.parametrize("draws_before", [0, 1])
def test_all_generators_go_on_where_they_were(draws_before):
    with preserved_rng():
        for _ in range(draws_before):
            draw()  # leaves a second normal number waiting in Python and NumPy
        state = safetensors.torch.load(safetensors.torch.save(capture_rng()))
        expected = [draw() for _ in range(3)]
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)
        restore_rng(state)
        assert [draw() for _ in range(3)] == expected


def test_preserved_rng_hides_what_was_drawn():
    with preserved_rng():
        expected = draw()
    with preserved_rng():
        draw()
    assert draw() == expected


def test_step_seeds_differ_and_never_change():
    seeds = {step_seed(seed, step) for seed in range(4) for step in range(-1, 200)}
    assert len(seeds) == 4 * 201
    assert step_seed(0, 0) == 3065247057545751466
