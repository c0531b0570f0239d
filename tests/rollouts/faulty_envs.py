"""Environments that misbehave in a worker process, by their Gymnasium ids: `tests.rollouts.faulty_envs:faulty/...`.

What they do to themselves is a fault of the real kind: a stopped or killed process, an endless loop.
"""

import os
import signal
from typing import Any

import gymnasium
import numpy as np

STEPS = 12


class PlainEnv(gymnasium.Env):
    """Twelve steps of nothing; success when the last action's first number is positive."""

    observation_space = gymnasium.spaces.Dict({"agent_pos": gymnasium.spaces.Box(-9, 9, (2,), np.float32)})
    action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self, faults: dict[int, str] | None = None, at_step: int = 5):
        """`faults`: seed -> what happens in its episode at `at_step`."""
        self._faults, self._at_step = faults or {}, at_step

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:
        super().reset(seed=seed)
        self.seed, self.steps = seed, 0
        return self._observation(), {"stage": 0}

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        self.steps += 1
        if self.seed in self._faults and self.steps == self._at_step:
            misbehave(self._faults[self.seed])
        over = self.steps == STEPS
        info = {"is_success": over and bool(action[0] > 0), "stage": int(self.steps > 3)}
        return self._observation(), 0.0, info["is_success"], over and not info["is_success"], info

    def _observation(self) -> dict[str, np.ndarray]:
        return {"agent_pos": np.array([self.steps / STEPS, self.np_random.random()], np.float32)}


class NeverMadeEnv(PlainEnv):
    """Its process dies while the environment is made."""

    def __init__(self):
        os.kill(os.getpid(), signal.SIGKILL)


def misbehave(fault: str) -> None:
    """Do to this process what can happen to it."""
    if fault == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault == "raise":
        raise RuntimeError("the solver\ngave up")
    elif fault == "loop":
        while True:
            pass


gymnasium.register("faulty/Plain-v0", PlainEnv)
gymnasium.register("faulty/NeverMade-v0", NeverMadeEnv)
