"""The objectives learn a distribution, not its mean: conditional 8-Gaussians, with the real head.

Four classes, each with two opposite modes on the unit circle; the mean of each class is the origin, so whoever
predicts the mean is in no mode at all. Flow matching in one step does just that, and is the negative control; IMF in
one step has to be in the modes, in both of them.
"""

import math

import pytest
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from roboimi.vla.models.heads import IMFAttnResHead
from roboimi.vla.objectives import ObjectiveConfig, compute
from roboimi.vla.sampling import sample

CLASSES, RADIUS, SIGMA = 4, 1.0, 0.05
STEPS, BATCH, SAMPLES = 1000, 192, 1000


def modes(label: Tensor) -> Tensor:
    """(n,) classes -> (n, 2, 2): the two modes of each, on opposite sides of the origin."""
    angle = label * math.pi / CLASSES
    mode = RADIUS * torch.stack((angle.cos(), angle.sin()), dim=-1)
    return torch.stack((mode, -mode), dim=1)


def draw(label: Tensor, generator: torch.Generator) -> Tensor:
    """(n,) classes -> (n, 1, 2) points, as chunks of one two-dimensional action."""
    side = torch.randint(0, 2, (len(label),), generator=generator)
    points = modes(label)[torch.arange(len(label)), side]
    return (points + SIGMA * torch.randn(points.shape, generator=generator))[:, None]


def condition(label: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(label, CLASSES).float()[:, None]


def trained(objective: ObjectiveConfig) -> torch.nn.Module:
    torch.manual_seed(0)
    head = IMFAttnResHead(2, 1, 1, cond_dim=CLASSES, n_emb=64, n_layer=2, n_head=2)
    averaged = AveragedModel(head, multi_avg_fn=get_ema_multi_avg_fn(0.995))
    optimizer = torch.optim.AdamW(head.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    generator = torch.Generator().manual_seed(1)
    mask = torch.ones(BATCH, 1, dtype=torch.bool)
    for _ in range(STEPS):
        label = torch.randint(0, CLASSES, (BATCH,), generator=generator)
        loss, _ = compute(head, draw(label, generator), condition(label), mask, objective, generator=generator)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        averaged.update_parameters(head)
    return averaged.module.eval()


class Samples:
    """What a trained head gives in so many steps, against fresh data.

    Attributes:
        energy: squared energy distance to the data, mean over classes; 0 for equal distributions.
        accuracy: share of the samples within 4 sigma of a mode of their class.
        balance: share of one of the two modes, of the class where it is furthest from a half.
    """

    def __init__(self, head: torch.nn.Module, objective: ObjectiveConfig, steps: int):
        generator = torch.Generator().manual_seed(2)
        energies, near, balances = [], [], []
        for number in range(CLASSES):
            label = torch.full((SAMPLES,), number)
            noise = torch.randn(SAMPLES, 1, 2, generator=generator)
            with torch.no_grad():
                points = sample(head, noise, condition(label), objective, steps)[:, 0]
            energies.append(energy_distance(points, draw(label, generator)[:, 0]))
            distances = (points[:, None] - modes(label)).norm(dim=-1)
            near.append((distances.min(dim=1).values < 4 * SIGMA).float().mean())
            balances.append((distances[:, 0] < distances[:, 1]).float().mean())
        self.energy = float(torch.stack(energies).mean())
        self.accuracy = float(torch.stack(near).mean())
        self.balance = float(max(balances, key=lambda share: abs(share - 0.5)))


def energy_distance(a: Tensor, b: Tensor) -> Tensor:
    """2 E|a - b| - E|a - a'| - E|b - b'| (Székely and Rizzo), without the pairs of a point with itself."""

    def within(points: Tensor) -> Tensor:
        return torch.cdist(points, points).sum() / (len(points) * (len(points) - 1))

    return 2 * torch.cdist(a, b).mean() - within(a) - within(b)


@pytest.fixture(scope="module")
def imf() -> torch.nn.Module:
    return trained(ObjectiveConfig("imf"))


@pytest.fixture(scope="module")
def flow() -> torch.nn.Module:
    return trained(ObjectiveConfig("flow"))


def test_the_metric_tells_data_from_its_mean():
    generator = torch.Generator().manual_seed(3)
    label = torch.zeros(SAMPLES, dtype=torch.long)
    a, b = (draw(label, generator)[:, 0] for _ in range(2))
    assert abs(energy_distance(a, b)) < 0.02
    assert energy_distance(torch.zeros_like(a), b) > 0.5


def test_imf_is_in_both_modes_after_one_step(imf):
    one = Samples(imf, ObjectiveConfig("imf"), steps=1)
    assert one.energy < 0.08
    assert 0.35 <= one.balance <= 0.65


def test_imf_is_in_the_modes_after_two_steps(imf):
    two = Samples(imf, ObjectiveConfig("imf"), steps=2)
    assert two.accuracy > 0.85
    assert 0.35 <= two.balance <= 0.65


def test_flow_matching_in_one_step_gives_the_mean(flow):
    """Negative control: the same head, data and budget, without the average velocity."""
    assert Samples(flow, ObjectiveConfig("flow"), steps=1).energy > 0.5


def test_flow_matching_in_ten_steps_is_in_the_modes(flow):
    """So that the control does not fail for want of training."""
    assert Samples(flow, ObjectiveConfig("flow"), steps=10).accuracy > 0.85
