"""Rollout validation during training: every N steps, five episodes by default, and training does not notice it."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch

from roboimi.errors import Interrupted, RenderError
from roboimi.storage.store import open_store
from roboimi.vla import eval_vla
from roboimi.vla.config import TrainRun, compose_config
from roboimi.vla.train_vla import train
from roboimi.vla.training.metrics import read_metrics

OVERRIDES = [
    "backbone=privileged_state",
    "head=small",
    "head.n_emb=32",
    "head.n_layer=1",
    "head.n_head=2",
    "head.cond_dim=32",
    "train.steps=4",
    "train.batch_size=4",
    "train.threads=1",
    "train.device=cpu",
    "train.tracking=disabled",
    "train.rollout_every=2",
    "+task.env_kwargs.time_limit_s=0.64",
]


@pytest.fixture
def make_run(tiny_dataset_maker):
    dataset = tiny_dataset_maker(image_size=(16, 16))

    def make(*overrides: str) -> TrainRun:
        return TrainRun.from_overrides([*OVERRIDES, *overrides], dataset=str(dataset.root), encoder="standin")

    return make


@pytest.fixture
def store(tmp_path: Path):
    return open_store(tmp_path / "store")


def rollout_lines(store, training):
    lines = read_metrics(store.root / training / "metrics.jsonl")
    return [line for line in lines if line["kind"] == "rollout"]


def test_the_default_count_is_five():
    assert compose_config()["train"]["rollout_episodes"] == 5


def test_five_real_episodes_are_rolled_out_every_n_steps(make_run, store, monkeypatch):
    """In the task's own environment, with the trainer's own agent."""
    seen = []
    real = eval_vla.rollout_validation

    def watch(agent, task, *, episodes):
        modes = {module.training for module in agent.modules()}
        weights = {name: value.clone() for name, value in agent.trainable_state_dict().items()}
        seen.append((episodes, modes, weights))
        return real(agent, task, episodes=episodes)

    monkeypatch.setattr(eval_vla, "rollout_validation", watch)
    result = train(make_run(), store=store)
    lines = rollout_lines(store, result.training)
    assert [line["step"] for line in lines] == [2, 4]
    for line in lines:
        assert line["episodes"] + line["unknown"] == 5
        assert line["unknown"] == 0
        assert 0.0 <= line["success_rate"] <= 1.0
    assert [episodes for episodes, _, _ in seen] == [5, 5]
    assert [modes for _, modes, _ in seen] == [{False}, {False}]  # eval mode in every module
    averaged = json.loads((store.root / result.checkpoint / "MANIFEST.json").read_text())["files"]["ema.safetensors"]
    assert result.policy_digest == averaged["sha256"]
    import safetensors.torch

    saved = safetensors.torch.load_file(store.root / result.checkpoint / "ema.safetensors")
    assert all(torch.equal(seen[-1][2][name], saved[name]) for name in saved)  # with the averaged weights


def test_it_changes_no_weight(make_run, store, tmp_path):
    other = open_store(tmp_path / "other")
    digests = {
        train(make_run("train.rollout_every=2"), store=store).policy_digest,
        train(make_run("train.rollout_every=0"), store=other).policy_digest,
    }
    assert len(digests) == 1


def test_the_agent_trains_on_in_train_mode_with_its_own_weights(make_run, store):
    """Also when the rollouts meddle with the modes and with every global generator."""
    agents = []

    def roll_out(agent):
        agents.append((agent, {name: value.clone() for name, value in agent.state_dict().items()}))
        agent.eval()
        torch.manual_seed(12345)
        return {"success_rate": 1.0}

    meddled = train(make_run("train.log_every=1"), store=store, rollouts=roll_out)
    (agent, at_two), (_, at_four) = agents
    assert all(module.training for module in agent.modules())
    assert any(not torch.equal(at_two[name], at_four[name]) for name in at_two)
    assert len(rollout_lines(store, meddled.training)) == 2


def test_what_rollouts_draw_from_the_global_generators_is_forgotten(make_run, store, tmp_path):
    def draw(agent):
        torch.rand(3)
        return {"success_rate": 0.0}

    other = open_store(tmp_path / "other")
    drawn = train(make_run(), store=store, rollouts=draw)
    quiet = train(make_run("train.rollout_every=0"), store=other)
    generators = [store.root / drawn.checkpoint, other.root / quiet.checkpoint]
    assert len({(folder / "rng.safetensors").read_bytes() for folder in generators}) == 1


def test_rollouts_that_were_done_before_a_crash_are_not_done_again(make_run, store):
    steps = []

    class Crash:
        def update(self, done, note=""):
            if done == 3:
                raise RuntimeError

    def roll_out(agent):
        steps.append(None)
        return {"success_rate": 0.5}

    with pytest.raises(RuntimeError):
        train(make_run(), store=store, rollouts=roll_out, progress=Crash())
    result = train(make_run(), store=store, rollouts=roll_out)
    assert len(steps) == 2
    assert [line["step"] for line in rollout_lines(store, result.training)] == [2, 4]


def test_zero_means_never(make_run, store):
    def fail(agent):
        raise AssertionError

    result = train(make_run("train.rollout_every=0"), store=store, rollouts=fail)
    assert rollout_lines(store, result.training) == []


def test_a_renderer_that_breaks_costs_no_step(make_run, store):
    """The failure keeps its class, and what was trained is already saved."""

    def broken(agent):
        raise RenderError("No GL here: install libegl1.")

    with pytest.raises(RenderError):
        train(make_run(), store=store, rollouts=broken)
    (key,) = store.list("trainings")
    assert store.read_json(f"trainings/{key}/LATEST.json")["step"] == 2
    result = train(make_run(), store=store, rollouts=lambda agent: {"success_rate": 0.0})
    assert [line["step"] for line in rollout_lines(store, result.training)] == [2, 4]


def test_a_signal_inside_a_rollout_stops_at_once_and_the_rollouts_are_made_up_for(make_run, store):
    def slow(agent):
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("the rollouts went on after the signal")

    with pytest.raises(Interrupted) as raised:
        train(make_run(), store=store, rollouts=slow)
    assert raised.value.exit_code == 143
    steps = []
    result = train(make_run(), store=store, rollouts=lambda agent: steps.append(0) or {"success_rate": 0.0})
    assert len(steps) == 2
    assert [line["step"] for line in rollout_lines(store, result.training)] == [2, 4]
