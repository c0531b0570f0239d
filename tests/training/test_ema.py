"""The averaged weights: closed form, warm-up of the decay, and that applying them leaves no trace."""

import contextlib

import pytest
import torch
from torch import nn

from roboimi.vla.training.ema import EMA, decay_at


def test_decay_warms_up_and_stops_at_its_maximum():
    decays = [decay_at(update, max_decay=0.9) for update in range(30)]
    assert decays[0] == 0.0
    assert decays[1] == pytest.approx(1 - 2**-0.75)
    assert decays[3] == pytest.approx(1 - 4**-0.75)
    assert decays[-1] == 0.9
    assert decays == sorted(decays)


def test_average_equals_the_closed_form():
    model = nn.Linear(1, 1, bias=False).double()
    ema = EMA(model, max_decay=0.8, power=0.75)
    values = [3.0, -1.0, 4.0, 1.0, -5.0, 9.0]
    for value in values:
        with torch.no_grad():
            model.weight.fill_(value)
        ema.update()
    # ema_n = sum_k (1 - d_k) w_k prod_{j > k} d_j
    decays = [min(0.8, 1 - (1 + k) ** -0.75) for k in range(len(values))]
    expected = 0.0
    for k, value in enumerate(values):
        weight = 1 - decays[k]
        for later in decays[k + 1 :]:
            weight *= later
        expected += weight * value
    assert ema.average["weight"].item() == pytest.approx(expected, rel=1e-12)
    assert ema.updates == len(values)


def test_updating_leaves_the_weights_alone():
    model = nn.Linear(2, 2)
    ema = EMA(model, max_decay=0.9)
    before = model.weight.detach().clone()
    ema.update()
    torch.testing.assert_close(model.weight.detach(), before, rtol=0, atol=0)
    assert model.weight.requires_grad


def test_frozen_parameters_are_not_averaged():
    model = nn.Sequential(nn.Linear(2, 2).requires_grad_(False), nn.Linear(2, 2))
    assert set(EMA(model, max_decay=0.9).average) == {"1.weight", "1.bias"}


def test_applied_gives_the_average_and_takes_it_back_even_after_an_error():
    model = nn.Linear(2, 2, bias=False)
    ema = EMA(model, max_decay=0.9)
    own = model.weight.detach().clone()
    ema.average["weight"].fill_(7.0)
    with contextlib.suppress(RuntimeError), ema.applied():
        inside = model(torch.ones(1, 2))
        raise RuntimeError
    assert (inside == 14.0).all()
    assert torch.equal(model.weight, own)
    assert (ema.average["weight"] == 7.0).all()


def test_the_average_goes_on_after_being_applied():
    model = nn.Linear(1, 1, bias=False)
    ema = EMA(model, max_decay=0.5)
    for value in (1.0, 2.0):
        with torch.no_grad():
            model.weight.fill_(value)
        with ema.applied():
            pass
        ema.update()
    assert ema.average["weight"].item() == pytest.approx(1.0 * decay_at(1, max_decay=0.5) + 2.0 * 2**-0.75)


def test_loading_needs_every_parameter():
    ema = EMA(nn.Linear(2, 2), max_decay=0.9)
    with pytest.raises(KeyError, match="bias"):
        ema.load({"weight": torch.ones(2, 2)}, updates=3)
