"""One update and what surrounds it: skipped steps, held-out loss, what is logged, features of a frozen tower."""

import numpy as np
import pytest
import torch

from roboimi.vla.data.feature_cache import cache_prefix
from roboimi.vla.data.manifest import resolve_dataset
from roboimi.vla.models.encoder_spec import EncoderSpec
from roboimi.vla.train_vla import train
from roboimi.vla.training.metrics import read_metrics
from roboimi.vla.training.session import TrainingData
from roboimi.vla.training.trainer import Trainer


@pytest.fixture
def trainer(make_run, store):
    def make(spoil=lambda step, batch: batch, **options):
        run = make_run(**options)
        torch.manual_seed(0)
        data = TrainingData(run, resolve_dataset(run.dataset), store)
        return Trainer(data.build_agent(), lambda step: spoil(step, data.batch(step)), run.train), data

    return make


def everything(trainer):
    tensors = trainer.snapshot().tensors
    return {
        f"{stem}/{name}": tensor.numpy().tobytes()
        for stem in ("model", "ema", "optimizer")
        for name, tensor in tensors[stem].items()
    }


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_non_finite_batch_changes_nothing_and_is_counted(trainer, value):
    def spoil(step, batch):
        if step == 2:
            batch["action"][0, 0, 0] = value
        return batch

    training, _ = trainer(spoil)
    for _ in range(2):
        training.advance()
    before, window = everything(training), training.window.state_dict()
    training.advance()
    assert everything(training) == before
    assert training.window.state_dict() == window
    assert (training.step, training.skipped) == (3, 1)
    training.advance()
    assert everything(training) != before
    assert training.skipped == 1
    assert all(tensor.isfinite().all() for tensor in training.snapshot().tensors["model"].values())


def test_a_finite_loss_with_a_non_finite_gradient_is_skipped_too(trainer):
    training, _ = trainer()
    training.advance()
    before = everything(training)
    parameter = training.agent.head.get_parameter(next(iter(dict(training.agent.head.named_parameters()))))
    hook = parameter.register_hook(lambda gradient: gradient * float("inf"))
    training.advance()
    hook.remove()
    assert everything(training) == before
    assert training.skipped == 1


def test_training_lowers_the_loss_on_what_it_sees(trainer):
    training, data = trainer()
    batch = data.batch(0)
    training._batches = lambda step: batch
    losses = [training.advance() for _ in range(60)]
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:10])


def test_the_held_out_loss_leaves_no_trace(trainer):
    training, data = trainer()
    for _ in range(2):
        training.advance()
    batches = data.held_out()
    assert sum(len(batch["state"]) for batch in batches) > 0
    before, generators = everything(training), torch.get_rng_state()
    first = training.held_out_loss(batches)
    assert training.held_out_loss(batches) == first
    assert everything(training) == before
    assert torch.equal(torch.get_rng_state(), generators)
    assert training.agent.training
    for average in training.ema.average.values():
        average.add_(0.1)
    assert training.held_out_loss(batches) != first  # it is the averaged weights that are asked


def test_held_out_windows_are_of_held_out_episodes(trainer, dataset):
    _, data = trainer()
    seen = torch.cat([batch["state"].flatten(1) for batch in data.held_out()])
    trained = torch.cat([data.batch(step)["state"].flatten(1) for step in range(20)])
    assert not (seen[:, None] == trained[None]).all(-1).any()


def test_a_dataset_that_holds_nothing_out_has_no_held_out_loss(make_run, store, tiny_dataset_maker):
    everything_trains = tiny_dataset_maker(image_size=(16, 16), validation_fraction=0.0)
    run = make_run(backbone="blind")
    object.__setattr__(run, "dataset", str(everything_trains.root))
    result = train(run, store=store)
    assert result.validation_loss is None
    assert {line["kind"] for line in read_metrics(store.root / result.training / "metrics.jsonl")} == {"train"}


def test_each_line_has_what_a_curve_needs(make_run, store):
    result = train(make_run(), store=store)
    lines = read_metrics(store.root / result.training / "metrics.jsonl")
    train_lines = [line for line in lines if line["kind"] == "train"]
    assert [line["step"] for line in train_lines] == [2, 4, 6]
    for name in ("loss", "mse", "grad_norm", "lr", "skipped", "data_s", "step_s", "samples_per_s", "memory_mb"):
        assert all(np.isfinite(line[name]) for line in train_lines), name
    assert result.loss == train_lines[-1]["loss"]
    assert [line["step"] for line in lines if line["kind"] == "validation"] == [1, 2, 3, 4, 5, 6]


def test_a_policy_that_sees_trains_on_the_cache_without_its_tower(make_run, store, tiny_dataset_maker):
    seen = tiny_dataset_maker(frames=17, episodes=2)
    run = make_run("train.steps=2", backbone="siglip2_diffusion")
    object.__setattr__(run, "dataset", str(seen.root))
    digest = EncoderSpec.parse("standin").digest
    result = train(run, store=store)
    assert store.committed(cache_prefix(seen.digest, digest), "CACHE.json") is not None
    data = TrainingData(run, seen, store)
    agent = data.build_agent()
    assert agent.vision_backbone.vision_model is None
    assert data.batch(0)["features"].shape[:3] == (4, 2, 3)
    assert result.parameters == sum(parameter.numel() for parameter in agent.parameters())
