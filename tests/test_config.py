"""Settings are checked at the edge, and a training's key holds what decides its weights and nothing else."""

import copy

import pytest

from roboimi.errors import ConfigError
from roboimi.vla.config import EvalConfig, TrainRun, compose_config, training_key

DATASET, ENCODER = "0" * 64, "1" * 64


def run_of(*overrides: str) -> TrainRun:
    return TrainRun.from_overrides(overrides, dataset="data", encoder="standin")


def key_of(*overrides: str, dataset: str = DATASET, encoder: str | None = ENCODER) -> str:
    return training_key(run_of(*overrides).fingerprint(dataset, encoder))


def test_the_defaults_are_the_requested_experiment():
    config = compose_config()
    head, backbone = config["agent"]["head"], config["agent"]["vision_backbone"]
    assert (head["n_emb"], head["n_layer"], head["n_head"], head["cond_dim"]) == (384, 12, 6, 384)
    assert (config["obs_horizon"], config["pred_horizon"], config["num_action_steps"]) == (2, 16, 8)
    assert config["train"]["steps"] == 50_000
    assert config["train"]["rollout_episodes"] == 5
    assert backbone["per_view_output_dim"] == 96
    assert backbone["dataset_image_resize_shape"] is None
    assert backbone["eval_image_resize_shape"] == [256, 256]
    assert config["encoder"].startswith("google/siglip2-base-patch16-256@")


@pytest.mark.parametrize(
    "override",
    [
        "backbone.per_view_output_dim=192",
        "backbone=blind",
        "head=small",
        "objective=regression",
        "train.steps=7",
        "train.seed=1",
        "num_action_steps=4",
    ],
)
def test_the_key_changes_with_what_decides_the_weights(override):
    assert key_of(override) != key_of()


@pytest.mark.parametrize(
    "override",
    [
        "train.log_every=7",
        "train.rollout_every=7",
        "train.checkpoint_interval_s=7",
        "train.device=cpu",
        "train.threads=1",
        "train.tracking=disabled",
        "store=/elsewhere",
        "dataset=/elsewhere",
    ],
)
def test_the_key_does_not_change_with_where_and_how_it_runs(override):
    assert key_of(override) == key_of()


def test_the_key_changes_with_the_data_and_with_the_encoder_of_a_policy_that_sees():
    assert key_of(dataset="2" * 64) != key_of()
    assert key_of(encoder="2" * 64) != key_of()
    assert key_of("backbone=blind", encoder="2" * 64) == key_of("backbone=blind")


def test_arms_do_not_share_state_through_the_composed_configuration():
    first = compose_config(["backbone.per_view_output_dim=96"])
    before = copy.deepcopy(first)
    compose_config(["backbone.per_view_output_dim=192"])
    assert first == before


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.stepz=3"], "stepz"),
        (["backbone=siglip3"], "siglip3"),
        (["train.steps=0"], "train.steps=0 must be positive"),
        (["train.device=tpu"], "train.device='tpu'"),
        (["num_action_steps=16"], "between 1 and pred_horizon - obs_horizon \\+ 1 = 15"),
        (["+train.extra=1"], "unknown settings \\['extra'\\]"),
        (["task.num_views=2"], "num_views=2"),
        (["train.steps=many"], "train.steps='many'"),
    ],
)
def test_a_setting_that_cannot_work_is_one_sentence(overrides, message):
    with pytest.raises(ConfigError, match=message) as caught:
        run_of(*overrides)
    assert "\n" not in str(caught.value)


def test_rollout_seeds_are_the_same_for_every_arm():
    assert list(EvalConfig(episodes=3, first_seed=7).seeds) == [7, 8, 9]
    with pytest.raises(ConfigError, match="episodes=0"):
        EvalConfig(episodes=0)


def test_the_encoder_of_a_run_reaches_the_backbone_and_is_no_part_of_the_key_by_its_name():
    run = TrainRun.from_overrides([], dataset="/data/${a} 'b'", encoder="/towers/mine")
    assert run.dataset == "/data/${a} 'b'"
    assert run.config["agent"]["vision_backbone"]["encoder"] == "/towers/mine"
    other = TrainRun.from_config(compose_config(["dataset=/elsewhere", "encoder=standin"]))
    assert run.semantic_config() == other.semantic_config()
