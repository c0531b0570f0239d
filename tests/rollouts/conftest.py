"""A real task, a policy of known outcome (the scripted expert), tiny real agents, and an environment that counts."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from transformers import SiglipVisionConfig, SiglipVisionModel

from roboimi.envs.expert import ScriptedExpert
from roboimi.envs.transfer_cube import TransferCubeEnv
from roboimi.storage.store import Store, open_store
from roboimi.vla.agent import VLAAgent
from roboimi.vla.build import build_agent
from roboimi.vla.config import TaskConfig, TrainRun, compose_config
from roboimi.vla.rollouts.rollout import ChunkRequest
from roboimi.vla.rollouts.task_env import ObservationView
from roboimi.vla.training.checkpoint import Checkpoints
from roboimi.vla.training.ema import EMA
from roboimi.vla.training.optim import make_optimizer
from roboimi.vla.training.snapshot import take_snapshot

TINY = ("head=small", "head.n_emb=32", "head.n_layer=1", "head.n_head=2", "head.cond_dim=32")
TINY += ("agent.cond_projector.output_dim=32",)


class ExpertPolicy:
    """The scripted expert in chunks; on the `clumsy` seeds it keeps its arms where they are.

    A function of what it reads: the cube's pose at an episode's first request decides the whole episode.
    """

    obs_horizon, pred_horizon = 2, 16

    def __init__(self, task: TaskConfig, clumsy: Sequence[int] = (), num_action_steps: int = 8):
        self.view = ObservationView(self.obs_horizon, "environment_state", task.cameras)
        self.num_action_steps = num_action_steps
        self.encode_seconds = 0.0
        self._clumsy, self._hz = frozenset(clumsy), task.control_hz
        self._plans: dict[int, ScriptedExpert] = {}
        self.calls: list[list[ChunkRequest]] = []

    def predict(self, batch: dict[str, np.ndarray], requests: Sequence[ChunkRequest]) -> np.ndarray:
        self.calls.append(list(requests))
        return np.stack([self._chunk(batch, row, request) for row, request in enumerate(requests)])

    def _chunk(self, batch: dict[str, np.ndarray], row: int, request: ChunkRequest) -> np.ndarray:
        if request.seed in self._clumsy:
            return np.repeat(batch["state"][row, -1:], self.pred_horizon, axis=0)
        if request.index == 0:
            self._plans[request.seed] = ScriptedExpert(batch["environment_state"][row, -1], self._hz)
        start = request.index * self.num_action_steps - (self.obs_horizon - 1)
        plan = self._plans[request.seed]
        return np.stack([plan.action(max(0, start + step)) for step in range(self.pred_horizon)])


class CountingEnv(TransferCubeEnv):
    """The real environment; notes each step and each rendered frame with the seed of its episode."""

    log: Counter

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:
        self.seed, self.over, self.steps_done = seed, False, 0
        return super().reset(seed=seed, options=options)

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        assert not self.over, f"seed {self.seed} was stepped after its end"
        result = super().step(action)
        self.steps_done += 1
        self.over = result[2] or result[3]
        self.log["steps", self.seed] += 1
        return result

    def render_cameras(self, cameras: Sequence[str]) -> dict[str, np.ndarray]:
        assert not self.over, f"seed {self.seed} was rendered after its end"
        self.log["frames", self.seed, self.steps_done] += len(cameras)
        return super().render_cameras(cameras)


@pytest.fixture(scope="session")
def task() -> TaskConfig:
    return TrainRun.from_config({**compose_config(), "dataset": "none"}).task


@pytest.fixture
def short_task(task: TaskConfig) -> TaskConfig:
    """The task with an episode of 20 control steps."""
    return replace(task, env_kwargs={**task.env_kwargs, "time_limit_s": 0.8})


@pytest.fixture(scope="session")
def expert(task: TaskConfig) -> Callable[..., ExpertPolicy]:
    return lambda **options: ExpertPolicy(task, **options)


@pytest.fixture
def expert_policy(expert: Callable[..., ExpertPolicy]) -> Callable[..., ExpertPolicy]:
    return expert


@pytest.fixture
def counting_env(short_task: TaskConfig) -> tuple[Callable[[], gymnasium.Env], Counter]:
    """A factory of counting environments, and their common log."""
    counts: Counter = Counter()

    class Counting(CountingEnv):
        log = counts

    return lambda: Counting(control_hz=short_task.control_hz, **short_task.env_kwargs), counts


@pytest.fixture(scope="session")
def tiny_agent() -> Callable[..., VLAAgent]:
    """`tiny_agent("blind")`: a real, untrained agent of a few thousand weights; with `stub` its tower is tiny too."""

    def make(backbone: str, *overrides: str, stub: bool = True) -> VLAAgent:
        torch.manual_seed(0)
        vision_model = None
        if backbone == "siglip2_diffusion" and stub:
            config = SiglipVisionConfig(
                hidden_size=16,
                intermediate_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                image_size=256,
                patch_size=64,
            )
            vision_model = SiglipVisionModel(config)
        config = compose_config([*TINY, f"backbone={backbone}", *overrides])
        kinds = {"state": "state_dim", "action": "action_dim", "environment_state": "environment_state_dim"}
        dims = {kind: config["task"][name] for kind, name in kinds.items()}
        around_home = {
            name: {"min": [-0.4] * dim, "max": [0.6] * dim, "mean": [0.1] * dim, "std": [0.2] * dim}
            for name, dim in dims.items()
        }
        agent = build_agent(config, vision_model=vision_model, statistics=around_home)
        # An untrained head gives all zeros; these weights make chunks depend on what is observed and on the noise.
        with torch.no_grad():
            for parameter in agent.head.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        return agent.eval()

    return make


@pytest.fixture
def trained(tmp_path, task: TaskConfig, tiny_agent) -> Callable[..., tuple[Store, str]]:
    """`trained("blind", time_limit_s=0.8)`: a store with a committed checkpoint of a tiny agent, and its prefix."""

    def make(backbone: str, *, nan: bool = False, **env_kwargs: Any) -> tuple[Store, str]:
        store, training = open_store(tmp_path / "store"), f"trainings/{'ab' * 16}"
        overrides = [*TINY, f"backbone={backbone}", "encoder=standin"]
        config = compose_config(
            [*overrides, *(f"+task.env_kwargs.{name}={value}" for name, value in env_kwargs.items())]
        )
        agent = tiny_agent(backbone, "encoder=standin", stub=False)
        if nan:
            with torch.no_grad():
                next(agent.head.parameters()).fill_(float("nan"))
        agent.train()
        optimizer = make_optimizer(agent, learning_rate=1e-3, betas=(0.9, 0.95), weight_decay=0.0)
        snapshot = take_snapshot(7, agent, EMA(agent, max_decay=0.9), optimizer, {})
        name = Checkpoints(store, training).save(snapshot)
        store.write_json(f"{training}/TRAINING.json", {"config": config, "encoder": "standin"})
        return store, f"{training}/checkpoints/{name}"

    return make
