"""One worker process: one environment, one renderer, one episode at a time; it predicts nothing.

```
parent                      worker
                            <- Ready(renderer)        its environment is what the task says, and can be seen
Start(seed)              ->
                            <- dict of arrays         what the policy reads
Execute(chunk, ...)      ->
                            <- dict of arrays, or EpisodeOutcome
                            <- a RoboimiError         nothing that another episode could cure
```
The process is spawned, never forked: OpenGL state does not survive a fork, so display and context are made here. It
counts its control steps in shared memory, where the parent sees whether it lives.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from roboimi.errors import RoboimiError
from roboimi.vla.config import TaskConfig
from roboimi.vla.rollouts.episode import EpisodeSlot
from roboimi.vla.rollouts.task_env import ObservationView, check_environment, env_factory
from roboimi.worker_process import begin_worker_process


@dataclass(frozen=True)
class WorkerSpec:
    """What a worker needs to know: the task, and what the policy reads and executes."""

    task: TaskConfig
    view: ObservationView
    pred_horizon: int
    num_action_steps: int


@dataclass(frozen=True)
class Ready:
    """The environment was made and checked; `renderer` is GL's name for what draws it, empty where nothing is drawn."""

    renderer: str


@dataclass(frozen=True)
class Start:
    """Begin the episode of `seed`."""

    seed: int


@dataclass(frozen=True)
class Execute:
    """Execute a chunk (T, A) in raw units; the times are those of its prediction, in ms."""

    chunk: np.ndarray
    latency_ms: float
    encode_ms: float


def run_worker(connection: Connection, steps_done: Any, spec: WorkerSpec) -> None:
    """Serve episodes until the parent hangs up.

    Args:
        connection: to the parent.
        steps_done: a shared counter that only ever grows while this worker gets on.
        spec: the task and the policy's view of it.
    """
    begin_worker_process()
    if spec.view.renders and not os.environ.get("MUJOCO_GL"):
        os.environ["MUJOCO_GL"] = "egl"  # environments of others ask for a display otherwise

    def count() -> None:
        steps_done.value += 1

    make_env = env_factory(spec.task)
    slot = EpisodeSlot(
        make_env,
        spec.view,
        pred_horizon=spec.pred_horizon,
        num_action_steps=spec.num_action_steps,
        on_progress=count,
    )
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError), contextlib.closing(slot):
        try:
            connection.send(Ready(_check(make_env, spec)))
            while True:
                message = connection.recv()
                if isinstance(message, Start):
                    slot.start(message.seed)
                else:
                    slot.execute(message.chunk, message.latency_ms, message.encode_ms)
                count()
                connection.send(slot.observation() if slot.outcome is None else slot.outcome)
        except RoboimiError as error:
            connection.send(error)


def _check(make_env: Any, spec: WorkerSpec) -> str:
    """Find what cannot work before the first episode, not after the last; gives the GL renderer's name."""
    env = make_env()
    try:
        check_environment(env, spec.task, spec.view)
    finally:
        env.close()
    if not spec.view.renders:
        return ""
    from roboimi.envs.render import gl_renderer

    return gl_renderer()
