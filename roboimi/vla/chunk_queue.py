"""Executes predicted chunks one action at a time, outside the network, for several environments at once.

With To = 2, T = 16, Ta = 8 and the newest observation at time n (a chunk's index 0 is its oldest observation step):

    chunk index     0     1    2   ...   8    9   ...  15
    time           n-1    n   n+1  ...  n+7  n+8  ... n+14
    executed              |---- Ta = 8 ---|               then a new chunk from the observation at time n+8
"""

from collections import deque
from collections.abc import Iterable, Sequence

import numpy as np

from roboimi.errors import ConfigError, PolicyOutputError


class ActionChunkQueue:
    """One queue of actions per environment.

    Args:
        num_envs: E environments.
        obs_horizon: To.
        pred_horizon: T.
        num_action_steps: Ta, executed of each chunk: indices [To - 1, To - 1 + Ta).

    Raises:
        ConfigError: the executed slice does not lie in the chunk.
    """

    def __init__(self, num_envs: int, obs_horizon: int, pred_horizon: int, num_action_steps: int):
        require_slice(obs_horizon, pred_horizon, num_action_steps)
        self._pred_horizon = pred_horizon
        self._executed = slice(obs_horizon - 1, obs_horizon - 1 + num_action_steps)
        self._queues: list[deque[np.ndarray]] = [deque() for _ in range(num_envs)]

    def reset(self, envs: Iterable[int] | None = None) -> None:
        """Forget the actions left in the queues of `envs` (None: all). An episode starts with a chunk of its own."""
        for env in range(len(self._queues)) if envs is None else envs:
            self._queues[env].clear()

    def empty(self, envs: Iterable[int] | None = None) -> list[int]:
        """Which of `envs` (None: all) need a chunk before their next action."""
        envs = range(len(self._queues)) if envs is None else envs
        return [env for env in envs if not self._queues[env]]

    def push(self, envs: Sequence[int], chunks: np.ndarray) -> None:
        """Queue the executed slice of each of `chunks` (len(envs), T, A).

        Raises:
            PolicyOutputError: the chunks have another shape.
        """
        chunks = np.asarray(chunks)
        if chunks.ndim != 3 or chunks.shape[:2] != (len(envs), self._pred_horizon):
            raise PolicyOutputError(
                f"The policy returned chunks of shape {chunks.shape} for {len(envs)} environments and a horizon of "
                f"{self._pred_horizon}: return (environments, horizon, action_dim)."
            )
        for env, chunk in zip(envs, chunks, strict=True):
            self._queues[env].extend(chunk[self._executed])

    def pop(self, envs: Sequence[int]) -> np.ndarray:
        """The next action of each of `envs`: (len(envs), A). Their queues must not be empty."""
        return np.stack([self._queues[env].popleft() for env in envs])


def require_slice(obs_horizon: int, pred_horizon: int, num_action_steps: int) -> None:
    """Check 1 <= Ta <= T - To + 1.

    Raises:
        ConfigError: the executed slice does not lie in the chunk.
    """
    most = pred_horizon - obs_horizon + 1
    if obs_horizon < 1 or not 1 <= num_action_steps <= most:
        raise ConfigError(
            f"num_action_steps={num_action_steps} must be between 1 and pred_horizon - obs_horizon + 1 = {most} "
            f"(pred_horizon={pred_horizon}, obs_horizon={obs_horizon}): change one of the three."
        )
