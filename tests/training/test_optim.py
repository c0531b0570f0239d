"""What is decayed and what is not, the learning rate's shape, the joint clipping of gradients."""

import math

import pytest
import torch
from torch import nn

from roboimi.errors import ConfigError
from roboimi.vla.build import build_agent
from roboimi.vla.training.optim import (
    clip_gradients,
    learning_rate,
    make_optimizer,
    parameter_groups,
    trainable_parameters,
)

SCHEDULE = {"peak": 2.0, "warmup_steps": 4, "total_steps": 20, "final_fraction": 0.1}


@pytest.fixture
def agent(make_run):
    config = make_run("head.rope=true", backbone="siglip2_diffusion").config
    return build_agent(config, feature_dim=8)


def names_of(groups):
    decayed = {name for group in groups if group["weight_decay"] for name, _ in group["params"]}
    undecayed = {name for group in groups if not group["weight_decay"] for name, _ in group["params"]}
    return decayed, undecayed


def test_every_trainable_parameter_is_in_exactly_one_group(agent):
    agent.head.get_parameter(next(iter(dict(agent.head.named_parameters())))).requires_grad_(False)
    decayed, undecayed = names_of(parameter_groups(agent, 0.1))
    assert decayed | undecayed == set(trainable_parameters(agent))
    assert not decayed & undecayed
    assert len(trainable_parameters(agent)) == len(dict(agent.named_parameters())) - 1


def test_only_weight_matrices_are_decayed(agent):
    decayed, undecayed = names_of(parameter_groups(agent, 0.1))
    parameters = dict(agent.named_parameters())
    assert decayed
    assert all(name.endswith(".weight") and parameters[name].ndim == 2 for name in decayed)
    assert {name for name, parameter in parameters.items() if parameter.ndim == 1} <= undecayed
    special = [name for name in parameters if "query" in name or "queries" in name or "position" in name]
    assert special, "the head's pseudo-queries and positions have other names now"
    assert set(special) <= undecayed


def test_decay_shrinks_the_decayed_weights_alone():
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = make_optimizer(model, learning_rate=0.1, betas=(0.9, 0.95), weight_decay=0.5)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        factor = 1 - 0.1 * 0.5 if name == "0.weight" else 1.0
        torch.testing.assert_close(parameter.detach(), before[name] * factor)


def test_a_shared_parameter_is_trained_once():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    decayed, undecayed = names_of(parameter_groups(model, 0.1))
    assert decayed == {"0.weight"}
    assert undecayed == {"0.bias", "1.bias"}


def test_nothing_to_train_is_an_error():
    with pytest.raises(ConfigError, match="no trainable parameter"):
        parameter_groups(nn.Linear(2, 2).requires_grad_(False), 0.1)


def test_learning_rate_warms_up_linearly_then_falls_as_half_a_cosine():
    rates = [learning_rate(step, **SCHEDULE) for step in range(21)]
    assert rates[:5] == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0])
    middle = 2.0 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 2)))
    assert rates[12] == pytest.approx(middle)
    assert rates[20] == pytest.approx(0.2)
    assert rates[4:] == sorted(rates[4:], reverse=True)


def test_learning_rate_without_warmup_starts_at_the_peak():
    assert learning_rate(0, **{**SCHEDULE, "warmup_steps": 0}) == 2.0


def test_learning_rate_never_rises_again_after_the_last_step():
    assert learning_rate(25, **SCHEDULE) == pytest.approx(0.2)


def test_gradients_are_clipped_by_their_joint_norm():
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))]
    parameters[0].grad, parameters[1].grad = torch.tensor([2.0, 1.0]), torch.tensor([2.0])
    assert clip_gradients(parameters, 1.5).item() == pytest.approx(3.0)
    torch.testing.assert_close(torch.cat([p.grad for p in parameters]), torch.tensor([1.0, 0.5, 1.0]))


def test_small_gradients_are_left_alone():
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([0.3, 0.4])
    clip_gradients([parameter], 1.0)
    torch.testing.assert_close(parameter.grad, torch.tensor([0.3, 0.4]))


def test_a_non_finite_gradient_shows_in_the_norm():
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([0.0, float("nan")])
    assert not math.isfinite(clip_gradients([parameter], 1.0))
