"""Rollouts in worker processes, under a watchdog: what hangs is killed, and its episode is `unknown`, never a failure.

```
worker 0   start seed 0 ... frames ->|wait|<- chunk, 8 steps, frames ->|wait|<- chunk ...
worker 1     start seed 1 ... frames ->| wait |<- chunk, 8 steps ...
parent                               [predict for all that wait]      [predict] ...
```
The policy lives in the parent alone, so no two threads or processes ever share it. Nothing an episode does depends on
its company: not its start, its noise, nor the shape of the batch that its chunks are predicted in. So one worker and
four give the same episodes.

Rendering can hang for ever: several EGL contexts on one GPU have been seen to block in glReadPixels. A worker that
finishes no control step in time is killed, as is one whose episode takes too long; a fresh one goes on with the next
seed. After every second loss the pool halves: a ladder of fewer renderers, down to one. One that is lost alone, again
and again, ends the evaluation.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Any

import numpy as np

from roboimi.cores import usable_cores
from roboimi.errors import RenderError, RoboimiError
from roboimi.vla.config import TaskConfig
from roboimi.vla.rollouts.outcomes import EpisodeOutcome, broken_off
from roboimi.vla.rollouts.rollout import ChunkPolicy, ChunkRequest, predict_chunks, require_seeds
from roboimi.vla.rollouts.worker import Execute, Ready, Start, WorkerSpec, run_worker

START_DEADLINE_S = 180.0
"""For importing, compiling the scene and making a context, on a busy machine."""

LONGEST_NAP_S = 60.0
LOSSES_PER_RUNG = 2
MOST_LOSSES_ALONE = 3
"""How often in a row, without any episode that ended, a worker that is alone may be lost, or one be lost before it is
ready."""


class RolloutsHang(RenderError):
    """The environment hangs or dies however few renderers there are."""

    failure_class = "rollouts-hang"
    retryable = True


@dataclass(frozen=True)
class Deadlines:
    """Seconds of a worker's own time: for one control step or look, and for a whole episode."""

    step_s: float = 60.0
    episode_s: float = 900.0


def default_workers() -> int:
    """As many as this process may use cores; `OMP_NUM_THREADS`, by which several share a machine, says so too."""
    threads = os.environ.get("OMP_NUM_THREADS", "")
    return int(threads) if threads.isdigit() and int(threads) else usable_cores()


class WorkerPool:
    """Runs episodes in worker processes.

    Args:
        policy: what acts.
        task: what it acts in.
        workers: processes, each with one environment and one renderer.
        deadlines: what counts as hanging.
        on_round: told the number of running episodes before each prediction.

    Attributes:
        workers: processes still allowed; falls when they hang or die.
        hangs: workers killed because they hung.
        deaths: workers that died by themselves.
        renderer: GL's name for what draws, empty where nothing is drawn.
    """

    def __init__(
        self,
        policy: ChunkPolicy,
        task: TaskConfig,
        *,
        workers: int,
        deadlines: Deadlines | None = None,
        on_round: Callable[[int], None] = lambda running: None,
    ):
        self._policy, self._on_round = policy, on_round
        self._spec = WorkerSpec(task, policy.view, policy.pred_horizon, policy.num_action_steps)
        self._deadlines = deadlines or Deadlines()
        self._alive: list[_Worker] = []
        self._lost_alone = self._lost_unready = 0
        self.workers = workers
        self.hangs = self.deaths = 0
        self.renderer = ""

    def run(self, seeds: Sequence[int]) -> Iterator[EpisodeOutcome]:
        """Run one episode a seed and give each outcome as soon as it is known.

        Raises:
            ConfigError: no seeds, the same seed twice, or an environment that is not the task's.
            PolicyOutputError: the policy returned something that is no action.
            RolloutsHang: a single worker hangs or dies again and again.
            RenderError: there is no GL to render with.
        """
        require_seeds(seeds)
        waiting = deque(seeds)
        try:
            while waiting or any(worker.seed is not None for worker in self._alive):
                self._staff(waiting)
                yield from self._listen(timeout=0 if self._asking() else self._patience())
                yield from self._watch()
                # Whoever is ready by now is served by the same prediction.
                self._predict(self._asking())
        finally:
            for worker in self._alive:
                worker.kill()
            self._alive.clear()

    def _staff(self, waiting: deque[int]) -> None:
        """Let surplus workers go, start missing ones, and give seeds to those that have none."""
        for worker in [worker for worker in self._alive if worker.seed is None][: max(0, self._surplus(waiting))]:
            worker.kill()
            self._alive.remove(worker)
        running = sum(worker.seed is not None for worker in self._alive)
        while len(self._alive) < min(self.workers, running + len(waiting)):
            self._alive.append(_Worker(self._spec, alone=self.workers == 1))
        for worker in self._alive:
            if waiting and worker.is_ready and worker.seed is None:
                worker.start(waiting.popleft())

    def _surplus(self, waiting: deque[int]) -> int:
        running = sum(worker.seed is not None for worker in self._alive)
        return len(self._alive) - min(self.workers, running + len(waiting))

    def _asking(self) -> list[_Worker]:
        return [worker for worker in self._alive if worker.observation is not None]

    def _patience(self) -> float:
        """Seconds until the first deadline."""
        soonest = min((worker.seconds_left(self._deadlines) for worker in self._alive), default=0.0)
        return min(LONGEST_NAP_S, max(0.0, soonest))

    def _listen(self, timeout: float) -> Iterator[EpisodeOutcome]:
        by_connection = {worker.connection: worker for worker in self._alive if worker.observation is None}
        for connection in wait(list(by_connection), timeout) if by_connection else ():
            worker = by_connection[connection]
            try:
                message = connection.recv()
            except (EOFError, ConnectionResetError, OSError):
                self.deaths += 1
                yield from self._lose(worker, worker.death())
                continue
            if isinstance(message, RoboimiError):
                raise message
            worker.heard()
            if isinstance(message, Ready):
                worker.is_ready, self.renderer, self._lost_unready = True, message.renderer, 0
            elif isinstance(message, EpisodeOutcome):
                worker.seed, self._lost_alone = None, 0
                yield message
            else:
                worker.observation = message

    def _watch(self) -> Iterator[EpisodeOutcome]:
        for worker in list(self._alive):
            if worker.observation is None and worker.seconds_left(self._deadlines) <= 0:
                reason = worker.overdue(self._deadlines)
                self.hangs += 1
                yield from self._lose(worker, reason)

    def _lose(self, worker: _Worker, reason: str) -> Iterator[EpisodeOutcome]:
        """Kill a worker; its episode, if it had one, is unknown."""
        worker.kill()
        self._alive.remove(worker)
        self._lost_alone += worker.alone
        self._lost_unready += not worker.is_ready
        if (self.hangs + self.deaths) % LOSSES_PER_RUNG == 0:
            self.workers = max(1, self.workers // 2)
        if worker.seed is not None:
            yield broken_off(worker.seed, reason)
        if max(self._lost_alone, self._lost_unready) >= MOST_LOSSES_ALONE:
            raise RolloutsHang(
                f"{self._spec.task.env_id} lost {MOST_LOSSES_ALONE} workers in a row without one episode that ended "
                f"({reason}): check the renderer, and raise eval.step_timeout_s if this machine is only slow."
            )

    def _predict(self, asking: Sequence[_Worker]) -> None:
        if not asking:
            return
        self._on_round(sum(worker.seed is not None for worker in self._alive))
        asking = sorted(asking, key=lambda worker: worker.seed)
        requests = [ChunkRequest(worker.seed, worker.chunks) for worker in asking]
        prediction = predict_chunks(self._policy, [worker.observation for worker in asking], requests)
        for worker, chunk in zip(asking, prediction.chunks, strict=True):
            worker.execute(Execute(chunk, prediction.latency_ms, prediction.encode_ms))


class _Worker:
    """The parent's side of one worker process."""

    def __init__(self, spec: WorkerSpec, *, alone: bool):
        self.alone = alone
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self._steps_done = context.RawValue(ctypes.c_uint64)
        self._process = context.Process(target=run_worker, args=(theirs, self._steps_done, spec), daemon=True)
        self._process.start()
        theirs.close()  # or its death would not be seen as the end of the connection
        self.seed: int | None = None
        self.is_ready = False
        self.chunks = 0
        self.observation: dict[str, np.ndarray] | None = None
        self._seen, self._moved = 0, time.monotonic()
        self._busy_s = 0.0
        self._asked = time.monotonic()

    def start(self, seed: int) -> None:
        self.seed, self.chunks, self._busy_s = seed, 0, 0.0
        self._send(Start(seed))

    def execute(self, order: Execute) -> None:
        self.observation = None
        self.chunks += 1
        self._send(order)

    def heard(self) -> None:
        """It answered: its clock stands still until it is asked again."""
        self._busy_s += time.monotonic() - self._asked

    def seconds_left(self, deadlines: Deadlines) -> float:
        """Until its next deadline; negative: it hangs. Infinite while it is not asked for anything."""
        now = time.monotonic()
        if not self.is_ready:
            return START_DEADLINE_S - (now - self._asked)
        if self.seed is None or self.observation is not None:
            return float("inf")
        if self._steps_done.value != self._seen:
            self._seen, self._moved = self._steps_done.value, now
        return min(deadlines.step_s - (now - self._moved), deadlines.episode_s - self._busy_s - (now - self._asked))

    def overdue(self, deadlines: Deadlines) -> str:
        """Why it is killed."""
        if not self.is_ready:
            return f"its worker was not ready within {START_DEADLINE_S:g} s"
        if deadlines.step_s - (time.monotonic() - self._moved) <= 0:
            return f"its worker hung: no control step was finished within {deadlines.step_s:g} s"
        return f"the episode took longer than {deadlines.episode_s:g} s"

    def death(self) -> str:
        """How it ended, once its connection has."""
        self._process.join(timeout=10)
        code = self._process.exitcode
        return f"its worker died ({f'signal {-code}' if code is not None and code < 0 else f'exit code {code}'})"

    def kill(self) -> None:
        self.connection.close()
        self._process.kill()  # also ends one that is stopped
        self._process.join()
        self._process.close()

    def _send(self, message: Any) -> None:
        now = time.monotonic()
        self._asked, self._moved, self._seen = now, now, self._steps_done.value
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # dead: the end of its connection will tell
            self.connection.send(message)
