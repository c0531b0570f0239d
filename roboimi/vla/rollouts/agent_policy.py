"""A trained agent as a rollout policy: tensors in and out, noise that belongs to the episode, the agent's mode kept."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from roboimi.errors import ConfigError
from roboimi.vla.agent import VLAAgent
from roboimi.vla.chunk_queue import require_slice
from roboimi.vla.config import TaskConfig
from roboimi.vla.rollouts.rollout import ChunkRequest
from roboimi.vla.rollouts.task_env import ObservationView

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

    def predict(self, batch: dict[str, np.ndarray], requests: Sequence[ChunkRequest]) -> np.ndarray:
        """See `ChunkPolicy.predict`.

        Raises:
            PolicyOutputError: the network gives NaN or infinity.
        """
        shape = (self.pred_horizon, self.agent.action_dim)
        noise = np.stack([chunk_noise(request, shape) for request in requests])  # (B, T, A)
        device = self.agent.device
        tensors = {name: torch.from_numpy(values).to(device) for name, values in batch.items()}
        chunks = self.agent.predict_action_chunk(
            tensors, noise=torch.from_numpy(noise).to(device), num_inference_steps=self.num_inference_steps
        )
        return chunks.float().cpu().numpy()


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
