"""A trained agent as a rollout policy: tensors in and out, noise that belongs to the episode, the agent's mode kept.

Matrix products round differently at different batch sizes, and contacts amplify the last bit into another episode. So
the network always sees batches of one size, filled up where fewer episodes wait: at equal shapes a row's result depends
on neither its place nor its company.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from roboimi.errors import ConfigError
from roboimi.vla.agent import VLAAgent
from roboimi.vla.chunk_queue import require_slice
from roboimi.vla.config import TaskConfig
from roboimi.vla.rollouts.rollout import ChunkRequest
from roboimi.vla.rollouts.task_env import ObservationView

ROWS_PER_PASS = {"cuda": 32}
"""Batch of every pass through the network by the kind of device, one row elsewhere. On a CPU larger batches gain
little (18 ms a row against 13 in batches of 4, and 14 to 23 in larger ones), and filling them up would cost more."""

NOISE_STREAM = 0x6E6F6973
"""Keeps the policy's noise apart from the environment's randomness, which is drawn from the same seed."""


class AgentPolicy:
    """Predicts chunks with an agent.

    Args:
        agent: the policy; used as it is, so its mode is the caller's business (see `evaluating`).
        cameras: the V views, in the order of the view axis.
        num_action_steps: Ta; None: as trained.
        num_inference_steps: NFE of one chunk; None: as trained.

    Raises:
        ConfigError: Ta does not lie in the chunk, or the number of cameras is not the backbone's.
    """

    def __init__(
        self,
        agent: VLAAgent,
        cameras: Sequence[str],
        *,
        num_action_steps: int | None = None,
        num_inference_steps: int | None = None,
    ):
        backbone = agent.vision_backbone
        views = getattr(backbone, "num_views", len(cameras))
        if views != len(cameras):
            raise ConfigError(
                f"The policy looks through {views} cameras and the task has {list(cameras)}: "
                "evaluate it in the task that it was trained for."
            )
        self.agent = agent
        self.view = ObservationView(
            obs_horizon=agent.obs_horizon,
            needs=backbone.needs,
            cameras=tuple(cameras),
            image_shape=tuple(backbone.eval_image_resize_shape or (256, 256)),
        )
        self.pred_horizon = agent.pred_horizon
        self.num_action_steps = num_action_steps or agent.num_action_steps
        self.num_inference_steps = num_inference_steps or agent.num_inference_steps
        require_slice(agent.obs_horizon, agent.pred_horizon, self.num_action_steps)
        self.encode_seconds = 0.0

    def predict(self, batch: dict[str, np.ndarray], requests: Sequence[ChunkRequest]) -> np.ndarray:
        """See `ChunkPolicy.predict`.

        Raises:
            PolicyOutputError: the network gives NaN or infinity.
        """
        shape = (self.pred_horizon, self.agent.action_dim)
        noise = np.stack([chunk_noise(request, shape) for request in requests])  # (B, T, A)
        rows = ROWS_PER_PASS.get(self.agent.device.type, 1)
        with self._timing_the_tower():
            parts = [
                self._pass(
                    {name: values[start : start + rows] for name, values in (batch | {"noise": noise}).items()}, rows
                )
                for start in range(0, len(requests), rows)
            ]
        return np.concatenate(parts)

    def _pass(self, batch: dict[str, np.ndarray], rows: int) -> np.ndarray:
        """One pass of exactly `rows` rows; the last one stands in for those that are missing."""
        count = len(batch["noise"])
        tensors = {}
        for name, values in batch.items():
            filled = np.concatenate([values, np.repeat(values[-1:], rows - count, axis=0)]) if count < rows else values
            tensors[name] = torch.from_numpy(np.ascontiguousarray(filled)).to(self.agent.device)
        noise = tensors.pop("noise")
        chunks = self.agent.predict_action_chunk(tensors, noise=noise, num_inference_steps=self.num_inference_steps)
        return chunks[:count].float().cpu().numpy()

    @contextlib.contextmanager
    def _timing_the_tower(self) -> Iterator[None]:
        """Within the block the backbone's time is added to `encode_seconds`."""
        started = 0.0

        def begin(*_: object) -> None:
            nonlocal started
            started = self._now()

        def end(*_: object) -> None:
            self.encode_seconds += self._now() - started

        backbone = self.agent.vision_backbone
        handles = [backbone.register_forward_pre_hook(begin), backbone.register_forward_hook(end)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _now(self) -> float:
        if self.agent.device.type == "cuda":
            torch.cuda.synchronize(self.agent.device)
        return time.perf_counter()


def chunk_noise(request: ChunkRequest, shape: tuple[int, int]) -> np.ndarray:
    """Standard normal noise (T, A) float32 of one chunk: a function of the request alone, on every device."""
    generator = np.random.default_rng([NOISE_STREAM, request.seed, request.index])
    return generator.standard_normal(shape, dtype=np.float32)


@contextlib.contextmanager
def evaluating(agent: torch.nn.Module) -> Iterator[None]:
    """Within the block the agent is in eval mode; after it each of its modules has the mode it had before."""
    modes = [(module, module.training) for module in agent.modules()]
    agent.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def check_dims(agent: VLAAgent, task: TaskConfig) -> None:
    """Make sure that a policy and a task have the same dimensions.

    Raises:
        ConfigError: S, A or the environment state's width differ.
    """
    pairs = [("state_dim", agent.obs_dim, task.state_dim), ("action_dim", agent.action_dim, task.action_dim)]
    if agent.vision_backbone.needs == "environment_state":
        width = agent.vision_backbone.output_dim
        pairs.append(("environment_state_dim", width, task.environment_state_dim))
    for name, trained, found in pairs:
        if trained != found:
            raise ConfigError(
                f"The policy was trained with {name}={trained} and the task {task.name!r} has {found}: "
                "evaluate it in the task that it was trained for."
            )
