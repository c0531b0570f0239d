"""Rollouts in lockstep: many episodes advance chunk by chunk, and one prediction serves all that wait for a chunk.

```
round     slot 0          slot 1          slot 2
  1       seed 0 chunk 0  seed 1 chunk 0  seed 2 chunk 0     one prediction, batch 3
  2       seed 0 chunk 1  seed 1 chunk 1  (over: idle)       ... the slot is filled again at the next round
  3       seed 0 chunk 2  seed 1 chunk 2  seed 3 chunk 0     one prediction, batch 3
```
What decides an episode is its seed alone: the environment's start and the policy's noise (a function of seed and chunk
index) do not depend on which other episodes run beside it, and a policy computes in batches of one shape
(`agent_policy.py`), so that not even rounding does. `worker_pool.py` runs the same episodes in processes of their own.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from roboimi.errors import ConfigError, PolicyOutputError
from roboimi.vla.rollouts.episode import EpisodeSlot
from roboimi.vla.rollouts.outcomes import EpisodeOutcome
from roboimi.vla.rollouts.task_env import EnvFactory, ObservationView


@dataclass(frozen=True)
class ChunkRequest:
    """Which chunk a prediction is for: the `index`-th (0-based) of the episode with this `seed`."""

    seed: int
    index: int


class ChunkPolicy(Protocol):
    """Predicts action chunks; keeps nothing from one call to the next."""

    view: ObservationView
    pred_horizon: int
    num_action_steps: int
    encode_seconds: float
    """Time that predictions have spent in the vision tower so far."""

    def predict(self, batch: dict[str, np.ndarray], requests: Sequence[ChunkRequest]) -> np.ndarray:
        """Predict one chunk for each request.

        Args:
            batch: `state` (B, To, S) float32, and as the view needs `environment_state` (B, To, E) float32 or `images`
                (B, To, V, H, W, 3) uint8.
            requests: what each row is for.

        Returns:
            (B, T, A), raw units.
        """


def run_episodes(
    policy: ChunkPolicy,
    make_env: EnvFactory,
    seeds: Sequence[int],
    *,
    parallel_envs: int,
    on_round: Callable[[int], None] = lambda running: None,
) -> Iterator[EpisodeOutcome]:
    """Run one episode a seed and give each outcome as soon as it is known.

    Args:
        policy: what acts.
        make_env: makes one environment; called at most `parallel_envs` times, and once more for each one that broke.
        seeds: of the episodes.
        parallel_envs: environments that advance together.
        on_round: told the number of running episodes before each prediction.

    Raises:
        ConfigError: no seeds, or the same seed twice.
        PolicyOutputError: the policy returned something that is no action.
        RenderError: there is no GL to render with.
    """
    require_seeds(seeds)
    waiting = deque(seeds)
    slots = [
        EpisodeSlot(make_env, policy.view, pred_horizon=policy.pred_horizon, num_action_steps=policy.num_action_steps)
        for _ in range(min(parallel_envs, len(seeds)))
    ]
    running: list[EpisodeSlot] = []
    try:
        while waiting or running:
            for slot in slots:
                if waiting and slot not in running:
                    slot.start(waiting.popleft())
                    running.append(slot)
            on_round(len(running))
            _advance([slot for slot in running if slot.outcome is None], policy)
            yield from (slot.outcome for slot in running if slot.outcome is not None)
            running = [slot for slot in running if slot.outcome is None]
    finally:
        for slot in slots:
            slot.close()


def _advance(slots: Sequence[EpisodeSlot], policy: ChunkPolicy) -> None:
    """One prediction for all of `slots`, and each executes its slice of it."""
    if not slots:
        return
    requests = [ChunkRequest(slot.seed, slot.chunks) for slot in slots]
    prediction = predict_chunks(policy, [slot.observation() for slot in slots], requests)
    for slot, chunk in zip(slots, prediction.chunks, strict=True):
        slot.execute(chunk, prediction.latency_ms, prediction.encode_ms)


@dataclass(frozen=True)
class Prediction:
    """Chunks (B, T, A) in raw units, and how long they took together, in ms; `encode_ms` is the tower's share."""

    chunks: np.ndarray
    latency_ms: float
    encode_ms: float


def predict_chunks(
    policy: ChunkPolicy, observations: Sequence[dict[str, np.ndarray]], requests: Sequence[ChunkRequest]
) -> Prediction:
    """One prediction for several episodes.

    Raises:
        PolicyOutputError: the policy returned something that is no action.
    """
    batch = {name: np.stack([observation[name] for observation in observations]) for name in observations[0]}
    encoded, started = policy.encode_seconds, time.perf_counter()
    chunks = policy.predict(batch, requests)
    latency_ms = 1000 * (time.perf_counter() - started)
    _require_actions(chunks, requests, policy.pred_horizon)
    return Prediction(chunks, latency_ms, 1000 * (policy.encode_seconds - encoded))


def require_seeds(seeds: Sequence[int]) -> None:
    """Refuse seeds that make no experiment.

    Raises:
        ConfigError: there are none, or the same one twice.
    """
    if not seeds:
        raise ConfigError("There are no rollout seeds: set eval.episodes to at least 1.")
    if len(set(seeds)) != len(seeds):
        raise ConfigError("The rollout seeds hold one twice, which would count it twice: give different seeds.")


def _require_actions(chunks: np.ndarray, requests: Sequence[ChunkRequest], pred_horizon: int) -> None:
    if chunks.ndim != 3 or chunks.shape[:2] != (len(requests), pred_horizon):
        raise PolicyOutputError(
            f"The policy returned chunks of shape {chunks.shape} for {len(requests)} episodes and a horizon of "
            f"{pred_horizon}: return (episodes, horizon, action_dim)."
        )
    finite = np.isfinite(chunks).all(axis=(1, 2))
    if not finite.all():
        request = requests[int(np.argmin(finite))]
        raise PolicyOutputError(
            f"The policy returned actions that are not finite in chunk {request.index} of seed {request.seed}: "
            "look at the training's loss and at the normaliser's ranges."
        )
