"""Protects the steps of an arm: what passes from encoding to training to evaluation, and what they leave behind."""

from pathlib import Path

import pytest
import torch
from kfp import dsl
from transformers import SiglipVisionConfig

from components.encode_features.component import encode_features
from components.encode_shard.component import encode_shard
from components.evaluate_policy.component import evaluate_policy
from components.evaluate_shard.component import evaluate_shard
from components.preflight_gpu.component import preflight_gpu
from components.train_policy.component import train_policy
from roboimi.campaign_step import read_pointer, write_pointer
from roboimi.storage.store import open_store
from roboimi.vla.config import compose_config
from roboimi.vla.models.encoder import random_vision_model
from tests.conftest import make_tiny_dataset

SHARED = ["head=small", "head.n_layer=1", "train.steps=3", "train.batch_size=2", "train.warmup_steps=1"]
SHARED += ["train.tracking=disabled", "train.threads=1", "+task.env_kwargs.time_limit_s=1"]
TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}


class Campaign:
    """One campaign's folder, with the artifacts that its steps hand on."""

    def __init__(self, root: Path):
        self.root, self.store = root, open_store(root / "store")
        cameras = compose_config()["task"]["cameras"]
        self.ref = make_tiny_dataset(root / "data", frames=18, cameras=cameras)
        self.encoder = str(root / "tower")
        config = SiglipVisionConfig(**TOWER, image_size=256, patch_size=32)
        random_vision_model(config, seed=1).save_pretrained(self.encoder)
        self.shared = {"store": str(root / "store"), "job_id": "job"}
        self.dataset = self.artifact(dsl.Dataset, "dataset")
        write_pointer(self.dataset.path, self.ref.text, self.ref.digest)
        self.features = self.artifact(dsl.Dataset, "features")

    def artifact(self, kind, name):
        return kind(name=name, uri=str(self.root / name))

    def record(self, arm, step):
        return self.store.read_json(f"campaigns/job/{arm}/{step}.json")

    def encode(self):
        encode_features.python_func(self.encoder, **self.shared, dataset=self.dataset, features=self.features)

    def train(self, arm, overrides, shared=None, **options):
        policy, metrics = self.artifact(dsl.Model, f"policy-{arm}"), self.artifact(dsl.Metrics, f"metrics-{arm}")
        train_policy.python_func(
            arm,
            overrides,
            SHARED,
            self.encoder,
            **(shared or self.shared),
            dataset=self.dataset,
            features=self.features,
            policy=policy,
            metrics=metrics,
            **options,
        )
        return policy, metrics.metadata

    def evaluate(self, arm, policy, episodes=1, **options):
        metrics = self.artifact(dsl.Metrics, f"evaluated-{arm}")
        evaluate_policy.python_func(arm, episodes, 100_000, **self.shared, policy=policy, metrics=metrics, **options)
        return metrics.metadata


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Campaign:
    campaign = Campaign(tmp_path_factory.mktemp("campaign"))
    campaign.encode()
    return campaign


@pytest.fixture(scope="module")
def trained(campaign):
    return {
        "wide": campaign.train("wide", ["backbone.per_view_output_dim=24"]),
        "blind": campaign.train("blind", ["backbone=blind"]),
    }


def test_features_are_handed_on_by_their_prefix(campaign):
    pointer = read_pointer(campaign.features.path)
    assert pointer["uri"].startswith("features/")
    assert pointer["feature_dim"] == 32
    assert campaign.store.committed(pointer["uri"], "CACHE.json")["frames"] == 54
    record = campaign.record("campaign", "encode")
    assert (record["features"], record["recognised"]) == (pointer["uri"], False)
    campaign.encode()
    assert campaign.record("campaign", "encode")["recognised"] is True


def test_every_arm_reports_the_same_numbers(trained):
    names = [set(metrics) for _, metrics in trained.values()]
    assert names[0] == names[1] == {"loss", "validation_loss", "steps", "skipped", "seconds", "parameters"}
    assert all(metrics["steps"] == 3.0 for _, metrics in trained.values())


def test_a_policy_is_handed_on_by_its_checkpoint(campaign, trained):
    pointer = read_pointer(trained["wide"][0].path)
    record = campaign.record("wide", "train")
    assert pointer["uri"] == record["checkpoint"]
    assert pointer["uri"].startswith(f"{record['training']}/checkpoints/")
    assert campaign.store.committed(pointer["uri"], "MANIFEST.json")
    assert record["result"].startswith("3 steps, loss ")


def test_an_arm_is_evaluated_on_its_checkpoint(campaign, trained):
    metrics = campaign.evaluate("wide", trained["wide"][0])
    assert metrics["episodes"] + metrics["unknown"] == 1.0
    record = campaign.record("wide", "evaluate")
    assert campaign.store.committed(record["rollouts"], "RESULT.json")["seeds"] == [100_000]
    assert record["checkpoint"] == campaign.record("wide", "train")["checkpoint"]
    assert record["recognised"] is False
    assert campaign.evaluate("wide", trained["wide"][0]) == metrics
    assert campaign.record("wide", "evaluate")["recognised"] is True


def test_shards_of_the_rollouts_are_put_together(campaign, trained):
    policy = trained["blind"][0]
    for shard in ("1/2", "2/2"):
        rollouts = campaign.artifact(dsl.Artifact, f"rollouts-{shard[0]}")
        evaluate_shard.python_func("blind", shard, 2, 100_000, **campaign.shared, policy=policy, rollouts=rollouts)
        assert campaign.record("blind", f"evaluate-{shard[0]}-of-2")["result"] == "0 of 1 succeeded"
        assert read_pointer(rollouts.path)["episodes"] == 1
    assert campaign.evaluate("blind", policy, episodes=2, shards=["1/2", "2/2"])["episodes"] == 2.0
    prefixes = [campaign.record("blind", step)["rollouts"] for step in ("evaluate", "evaluate-1-of-2")]
    seconds = [campaign.store.committed(prefix, "RESULT.json")["timing"]["step_s"] for prefix in prefixes]
    assert seconds[0] > seconds[1] > 0


def test_shards_of_the_encoding_fill_one_cache(campaign, tmp_path):
    other = Campaign(tmp_path)
    for shard, complete in (("1/2", False), ("2/2", True)):
        cache = other.artifact(dsl.Dataset, f"cache-{shard[0]}")
        encode_shard.python_func(other.encoder, shard, **other.shared, dataset=other.dataset, cache=cache)
        assert read_pointer(cache.path)["complete"] is complete
        assert other.record("campaign", f"encode-{shard[0]}-of-2")["status"] == "succeeded"
    other.encode()
    assert other.record("campaign", "encode")["recognised"] is True


def test_a_supervised_training_is_the_same_training(campaign, trained, tmp_path):
    policy, metrics = campaign.train("supervised", ["backbone=blind", "train.seed=1"], restarts=2)
    assert metrics["steps"] == 3.0
    record = campaign.record("supervised", "train")
    assert "restarts" not in record
    alone = {**campaign.shared, "store": str(tmp_path / "store")}
    again, _ = campaign.train("alone", ["backbone=blind", "train.seed=1"], shared=alone)
    assert read_pointer(policy.path)["digest"] == read_pointer(again.path)["digest"]


def test_an_arm_that_contradicts_the_data_fails_with_one_sentence(campaign, capsys):
    with pytest.raises(SystemExit) as caught:
        campaign.train("wrong", ["task.state_dim=13"])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert "task.state_dim=13" in error
    assert error.count("\n") == 1
    record = campaign.record("wrong", "train")
    assert (record["status"], record["failure_class"], record["retryable"]) == ("failed", "bad-config", False)
    assert not (campaign.root / "policy-wrong").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_node_without_a_gpu_fails_its_preflight(campaign, capsys):
    summary = campaign.artifact(dsl.Markdown, "preflight")
    with pytest.raises(SystemExit) as caught:
        preflight_gpu.python_func(
            campaign.encoder, SHARED, "", True, **campaign.shared, dataset=campaign.dataset, summary=summary
        )
    assert caught.value.code == 15
    assert "finds no CUDA device" in capsys.readouterr().err
    assert campaign.record("campaign", "preflight")["failure_class"] == "no-cuda"


def test_a_cluster_without_gpus_is_told_so_and_checks_the_rest(campaign):
    summary = campaign.artifact(dsl.Markdown, "preflight-cpu")
    preflight_gpu.python_func(
        campaign.encoder, SHARED, "", False, **campaign.shared, dataset=campaign.dataset, summary=summary
    )
    found = campaign.record("campaign", "preflight")["preflight"]
    assert found["device"] == "cpu (no GPU asked for)"
    assert found["steps"] == 8
