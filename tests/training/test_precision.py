"""Lower precision is for the pass with gradients alone; a compiled head has the same weights under the same names."""

import pytest
import torch

from roboimi.errors import ConfigError
from roboimi.vla import objectives
from roboimi.vla.data.manifest import resolve_dataset
from roboimi.vla.training.session import TrainingData
from roboimi.vla.training.trainer import Trainer


@pytest.fixture
def make_trainer(make_run, store):
    def make(*settings):
        run = make_run(*settings)
        torch.manual_seed(0)
        data = TrainingData(run, resolve_dataset(run.dataset), store)
        return Trainer(data.build_agent(), data.batch, run.train)

    return make


def test_bfloat16_trains_nearly_as_float32_does_on_weights_that_stay_float32(make_trainer):
    full, half = make_trainer(), make_trainer("train.precision=bfloat16")
    expected, got = ([trainer.advance() for _ in range(4)] for trainer in (full, half))
    assert got != expected  # it does round
    assert got == pytest.approx(expected, rel=0.05)
    assert {tensor.dtype for tensor in half.snapshot().tensors["model"].values()} == {torch.float32}


def test_the_derivative_is_taken_in_float32(make_trainer, monkeypatch):
    seen = []

    def derivative(head, z, r, t, cond, tangent):
        slope = original(head, z, r, t, cond, tangent)
        again = original(head.double(), *(value.double() for value in (z, r, t, cond, tangent)))
        head.float()
        seen.append(((slope - again).norm() / again.norm()).item())
        return slope

    original = objectives.time_derivative
    monkeypatch.setattr(objectives, "time_derivative", derivative)
    training = make_trainer("train.precision=bfloat16")
    for _ in range(2):
        training.advance()
    assert seen
    assert max(seen) < 1e-4  # bfloat16 would be 1e-2 off


def test_a_compiled_head_has_the_same_weights(make_trainer):
    plain, compiled = make_trainer(), make_trainer("train.compile=true")
    weights = plain.agent.trainable_state_dict()
    assert compiled.agent.trainable_state_dict().keys() == weights.keys()
    assert compiled.agent.head._compiled_call_impl is not None
    assert plain.agent.head._compiled_call_impl is None


@pytest.mark.parametrize("setting", ["train.precision=float16", "train.compile=1"])
def test_other_settings_are_refused(make_run, setting):
    with pytest.raises(ConfigError, match=setting.split("=")[0]):
        make_run(setting)
