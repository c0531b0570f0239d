"""Rollouts without a display: frames larger than 256 x 256 reach the backbone as 256 x 256, resized as in recording."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import SiglipVisionConfig, SiglipVisionModel

from roboimi.envs.images import resize_frame
from roboimi.vla.agent import VLAAgent
from roboimi.vla.build import build_agent
from roboimi.vla.config import TaskConfig, TrainRun, compose_config
from roboimi.vla.eval_vla import rollout_validation
from roboimi.vla.rollouts.task_env import env_factory

SEED = 50_000
TINY_HEAD = ["head=small", "head.n_emb=32", "head.n_layer=1", "head.n_head=2"]


@pytest.fixture(autouse=True)
def no_display(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "MUJOCO_GL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def config() -> dict:
    return compose_config(TINY_HEAD)


@pytest.fixture
def task(config: dict) -> TaskConfig:
    task = TrainRun.from_config({**config, "dataset": "none"}).task
    return replace(task, env_kwargs={**task.env_kwargs, "time_limit_s": 0.6})


def build(config: dict, image_size: int) -> VLAAgent:
    """A real agent; its vision tower is a real, randomly initialised `SiglipVisionModel` of one narrow layer."""
    torch.manual_seed(0)
    tower = SiglipVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=image_size,
        patch_size=64,
    )
    widths = {"state": config["obs_dim"], "action": config["action_dim"]}
    bounds = {"min": -1.0, "max": 1.0, "mean": 0.0, "std": 0.5}
    statistics = {name: {key: [value] * width for key, value in bounds.items()} for name, width in widths.items()}
    return build_agent(config, vision_model=SiglipVisionModel(tower), statistics=statistics)


@pytest.fixture
def agent(config: dict) -> VLAAgent:
    return build(config, 256)


@pytest.fixture
def seen(agent: VLAAgent) -> list[torch.Tensor]:
    """The images of every call of the backbone."""
    batches: list[torch.Tensor] = []
    agent.vision_backbone.register_forward_pre_hook(lambda module, inputs: batches.append(inputs[0]["images"].clone()))
    return batches


def test_the_backbone_gets_256_by_256(agent: VLAAgent, task: TaskConfig, seen: list[torch.Tensor]):
    assert agent.vision_backbone.eval_image_resize_shape == (256, 256)
    env = env_factory(task)()
    env.reset(seed=SEED)
    # One camera at a time and from the environment itself: what is compared must not come from what is tested.
    raw = [env.unwrapped.render_cameras([name])[name] for name in task.cameras]
    env.close()
    assert all(min(frame.shape[:2]) > 256 for frame in raw)

    result = rollout_validation(agent, task, episodes=2, first_seed=SEED)
    assert (result["episodes"], result["unknown"]) == (2, 0)
    assert len(seen) == 4  # 15 control steps are two chunks of each episode; on a CPU every pass has one row
    for images in seen:
        assert images.shape == (1, agent.obs_horizon, task.num_views, 256, 256, 3)
        assert images.dtype == torch.uint8

    as_recorded = np.stack([resize_frame(frame, (256, 256)) for frame in raw])
    for step in range(agent.obs_horizon):  # at the start the history repeats the first frame
        np.testing.assert_array_equal(seen[0][0, step].numpy(), as_recorded)
    red, _, blue = np.moveaxis(seen[0][0, 0].numpy().astype(int), -1, 0)  # (V, H, W) each
    assert ((red - blue > 60).sum(axis=(1, 2)) > 100).all()  # the cube is red, not blue
    assert not (blue - red > 60).any()


def test_a_new_chunk_sees_new_frames(agent: VLAAgent, task: TaskConfig, seen: list[torch.Tensor]):
    rollout_validation(agent, task, episodes=1, first_seed=SEED)
    first, second = seen
    assert not torch.equal(first[0, 0], second[0, 0])
    assert not torch.equal(second[0, 0], second[0, 1])  # consecutive moments, not one frame twice


def test_the_size_is_the_backbones_to_choose(task: TaskConfig):
    agent = build(compose_config([*TINY_HEAD, "backbone.eval_image_resize_shape=[128,128]"]), 128)
    shapes: list[torch.Size] = []
    agent.vision_backbone.register_forward_pre_hook(lambda module, inputs: shapes.append(inputs[0]["images"].shape))
    rollout_validation(agent, task, episodes=1, first_seed=SEED)
    assert {tuple(shape[3:]) for shape in shapes} == {(128, 128, 3)}
