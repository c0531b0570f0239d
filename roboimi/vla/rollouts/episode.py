"""One episode: an environment, the policy's view of its recent past, and how it ended.

At the start the history repeats the first observation, as the windows of the training data do. Frames are rendered only
for the To observations at the end of an executed slice, because the policy reads no others:

    executed step of the slice    1   2   3   4   5   6   7   8  | new chunk
    rendered (To = 2)             .   .   .   .   .   .   x   x  |
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np

from roboimi.envs.images import resize_frame
from roboimi.errors import ConfigError, RoboimiError
from roboimi.vla.chunk_queue import ActionChunkQueue
from roboimi.vla.rollouts.outcomes import FAILURE, SUCCESS, UNKNOWN, EpisodeOutcome, EpisodeTiming
from roboimi.vla.rollouts.task_env import (
    ENVIRONMENT_STATE_KEY,
    STATE_KEY,
    EnvFactory,
    ObservationView,
    render_frames,
)

MAX_STEPS = 20_000  # an environment that never ends must not hang a campaign


class EpisodeSlot:
    """Runs episodes one after another in one environment, chunk by chunk.

    A slot touches nothing outside itself, so a pool of slots may as well live in worker processes.

    Args:
        make_env: makes the environment; called again after one broke.
        view: what the policy reads.
        pred_horizon: T.
        num_action_steps: Ta, executed of each chunk.
        on_progress: called after each control step and each look, so that somebody else can tell that it lives.
    """

    def __init__(
        self,
        make_env: EnvFactory,
        view: ObservationView,
        *,
        pred_horizon: int,
        num_action_steps: int,
        on_progress: Callable[[], None] = lambda: None,
    ):
        self._make_env, self._view, self._on_progress = make_env, view, on_progress
        self._num_action_steps = num_action_steps
        self._queue = ActionChunkQueue(1, view.obs_horizon, pred_horizon, num_action_steps)
        self._env: gymnasium.Env | None = None
        self.outcome: EpisodeOutcome | None = None

    def start(self, seed: int) -> None:
        """Begin the episode of `seed`; nothing of an earlier one is left."""
        self.seed, self.outcome = seed, None
        self.chunks = 0
        self._stage = 0
        self._latencies: list[float] = []
        self._seconds = dict.fromkeys(("observe_s", "preprocess_s", "encode_s", "head_s", "step_s"), 0.0)
        self._actions: list[np.ndarray] = []
        self._frame_size: tuple[int, int] | None = None
        self._history: dict[str, deque[np.ndarray]] = {}
        self._queue.reset()
        try:
            if self._env is None:
                self._env = self._make_env()
            observation, info = self._env.reset(seed=seed)
            for _ in range(self._view.obs_horizon):
                self._remember(observation)
            if self._view.renders:
                frame = self._rendered(observation)
                self._history["images"] = deque([frame] * self._view.obs_horizon, maxlen=self._view.obs_horizon)
            self._stage = int(info.get("stage", 0))
        except RoboimiError:
            raise
        except Exception as error:
            self._give_up(error)

    def observation(self) -> dict[str, np.ndarray]:
        """What the policy reads now: `state` (To, S), and `environment_state` (To, E) or `images` (To, V, H, W, 3)."""
        return {name: np.stack(values) for name, values in self._history.items()}

    def execute(self, chunk: np.ndarray, latency_ms: float, encode_ms: float = 0.0) -> None:
        """Execute a chunk's slice of Ta actions, or fewer if the episode ends within it.

        Args:
            chunk: (T, A), raw units.
            latency_ms: how long its prediction took.
            encode_ms: the vision tower's share of that.
        """
        self._queue.push([0], chunk[None])
        self.chunks += 1
        self._latencies.append(latency_ms)
        self._seconds["encode_s"] += encode_ms / 1000
        self._seconds["head_s"] += (latency_ms - encode_ms) / 1000
        for executed in range(self._num_action_steps):
            if self.outcome is None:
                is_read = self._num_action_steps - executed <= self._view.obs_horizon
                self._step(self._queue.pop([0])[0], render=is_read and self._view.renders)

    def close(self) -> None:
        """Close the environment."""
        if self._env is not None:
            self._env.close()
            self._env = None

    def _step(self, action: np.ndarray, *, render: bool) -> None:
        try:
            self._actions.append(np.array(action, dtype=np.float32))
            started = time.perf_counter()
            observation, _, terminated, truncated, info = self._env.step(self._actions[-1])
            self._seconds["step_s"] += time.perf_counter() - started
            self._on_progress()
            self._stage = max(self._stage, int(info.get("stage", 0)))
            if terminated or truncated:
                self._finish(SUCCESS if self._is_success(info) else FAILURE)
            elif len(self._actions) >= MAX_STEPS:
                self._finish(UNKNOWN, f"the episode did not end within {MAX_STEPS} steps")
            else:
                self._remember(observation)
                if render:
                    self._history["images"].append(self._rendered(observation))
        except RoboimiError:
            raise
        except Exception as error:
            self._give_up(error)

    def _is_success(self, info: dict[str, Any]) -> bool:
        if "is_success" not in info:
            raise ConfigError(
                f"{type(self._env.unwrapped).__name__} ends an episode without info['is_success']: "
                "add it to the environment."
            )
        return bool(info["is_success"])

    def _remember(self, observation: dict[str, np.ndarray]) -> None:
        kept = {"state": STATE_KEY}
        if self._view.needs == ENVIRONMENT_STATE_KEY:
            kept["environment_state"] = ENVIRONMENT_STATE_KEY
        for name, key in kept.items():
            value = np.array(observation[key], dtype=np.float32)
            if not np.isfinite(value).all():
                raise FloatingPointError(f"{key} of the environment is not finite after {len(self._actions)} steps")
            self._history.setdefault(name, deque(maxlen=self._view.obs_horizon)).append(value)

    def _rendered(self, observation: dict[str, Any]) -> np.ndarray:
        """(V, H, W, 3) uint8 at the encoder's size."""
        started = time.perf_counter()
        frames = render_frames(self._env, self._view.cameras, observation)
        self._on_progress()
        rendered = time.perf_counter()
        self._frame_size = frames[0].shape[:2]
        images = np.stack([resize_frame(frame, self._view.image_shape) for frame in frames])
        self._seconds["observe_s"] += rendered - started
        self._seconds["preprocess_s"] += time.perf_counter() - rendered
        return images

    def _give_up(self, error: Exception) -> None:
        """The environment broke: the episode tells nothing, and the environment is not used again."""
        self._finish(UNKNOWN, f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": "))
        self.close()

    def _finish(self, outcome: str, reason: str = "") -> None:
        self.outcome = EpisodeOutcome(
            seed=self.seed,
            outcome=outcome,
            stage=self._stage,
            steps=len(self._actions),
            chunks=self.chunks,
            frame_size=self._frame_size,
            reason=reason,
            actions=np.stack(self._actions) if self._actions else np.zeros((0, 0), np.float32),
            timing=EpisodeTiming(
                **self._seconds,
                chunk_ms=float(np.median(self._latencies)) if self._latencies else 0.0,
                control_ms=1000 * sum(self._seconds.values()) / max(1, len(self._actions)),
            ),
        )
