"""A training in memory: one update, what a checkpoint holds, and how one goes on from it.

Step n is a function of (configuration, n, state after n − 1) alone: its windows come from (seed, n), its noise and
times from a generator seeded by (seed, n), its learning rate from n. So a training that goes on from a checkpoint is,
on a CPU with the same number of threads, the uninterrupted training to the last bit.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from roboimi.errors import CheckpointError
from roboimi.vla.agent import VLAAgent
from roboimi.vla.config import TrainConfig
from roboimi.vla.training.ema import EMA
from roboimi.vla.training.metrics import Window
from roboimi.vla.training.optim import (
    clip_gradients,
    learning_rate,
    make_optimizer,
    set_learning_rate,
    trainable_parameters,
)
from roboimi.vla.training.rng import preserved_rng, step_seed
from roboimi.vla.training.snapshot import HostBuffers, Snapshot, restore, take_snapshot
from roboimi.vla.training.watchdog import DATA_S, UPDATE_S, Watchdog

Batch = dict[str, Tensor]


class Trainer:
    """A training in memory: what one update changes, and what a checkpoint holds.

    Args:
        agent: the policy, on its device.
        batches: step → batch on the agent's device.
        settings: how to train.
        origin: where this training comes from (keys, digests, code revision); travels in every checkpoint.
        watchdog: told what is under way.

    Attributes:
        step: updates done, skipped ones included.
        skipped: updates left out because the loss or a gradient was not finite.
        window: sums since the last log line.
        timings: seconds since the last log line, `data_s` and `step_s`.
        seconds: spent in updates, over all attempts.
    """

    def __init__(
        self,
        agent: VLAAgent,
        batches: Callable[[int], Batch],
        settings: TrainConfig,
        origin: Mapping[str, Any] | None = None,
        watchdog: Watchdog | None = None,
    ):
        self._watchdog = watchdog or Watchdog()
        self.agent = agent.train()
        if settings.compile:
            compile_head(agent.head)
        self.origin = dict(origin or {})
        self.settings = settings
        self.step = self.skipped = 0
        self.seconds = 0.0
        self.window, self.timings = Window(), Window()
        self.ema = EMA(agent, max_decay=settings.ema_max_decay, power=settings.ema_power)
        self.optimizer = make_optimizer(
            agent,
            learning_rate=settings.learning_rate,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
        )
        self._batches = batches
        self._parameters = list(trainable_parameters(agent).values())
        self._generator = torch.Generator(agent.device)

    def rate(self, step: int) -> float:
        """The learning rate of update `step`."""
        settings = self.settings
        return learning_rate(
            step,
            peak=settings.learning_rate,
            warmup_steps=settings.warmup_steps,
            total_steps=settings.steps,
            final_fraction=settings.final_lr_fraction,
        )

    def advance(self) -> float:
        """Do one update and return its loss.

        An update whose loss, or a part of it, or gradient norm is not finite changes no weight, moment or average; it
        is counted.
        """
        with self._watchdog.expecting(f"update {self.step}", UPDATE_S):
            return self._advance()

    def _advance(self) -> float:
        started = time.perf_counter()
        with self._watchdog.expecting(f"reading the data of step {self.step}", DATA_S):
            batch = self._batches(self.step)
        loaded = time.perf_counter()
        set_learning_rate(self.optimizer, self.rate(self.step))
        self._generator.manual_seed(step_seed(self.settings.seed, self.step))
        loss, parts = self._loss(batch)
        loss.backward()
        norm = clip_gradients(self._parameters, self.settings.grad_clip)
        # One transfer from the device for all that is logged, and for the decision whether to take the update.
        values = torch.stack([loss.detach(), norm, *parts.values()]).tolist()
        if all(map(math.isfinite, values)):
            self.optimizer.step()
            self.ema.update()
            self.window.add(dict(zip(("loss", "grad_norm", *parts), values, strict=True)))
        else:
            self.skipped += 1
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        ended = time.perf_counter()
        self.timings.add({"data_s": loaded - started, "step_s": ended - started})
        self.seconds += ended - started
        return values[0]

    def _loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The objective in the configured precision; it takes its derivative along the trajectory in float32 itself."""
        lower = self.settings.precision == "bfloat16"
        with torch.autocast(self.agent.device.type, dtype=torch.bfloat16, enabled=lower):
            return self.agent.compute_loss(batch, self._generator)

    @torch.no_grad()
    def held_out_loss(self, batches: list[Batch]) -> float:
        """Mean loss of the averaged weights over `batches`, with the same noise and times at every call."""
        with self.evaluating():
            self._generator.manual_seed(step_seed(self.settings.seed, -1))
            losses = torch.stack([self._loss(batch)[0] for batch in batches])
        return losses.mean().item()

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Within the block the agent has the averaged weights and is in eval mode; training notices nothing of it."""
        self.agent.eval()
        try:
            with preserved_rng(), self.ema.applied():
                yield
        finally:
            self.agent.train()

    def snapshot(self, metrics: str = "", buffers: HostBuffers | None = None) -> Snapshot:
        """All that the next update depends on, copied; the metrics so far travel with it."""
        state = {
            "skipped": self.skipped,
            "seconds": self.seconds,
            "window": self.window.state_dict(),
            "origin": self.origin,
        }
        return take_snapshot(self.step, self.agent, self.ema, self.optimizer, state, metrics=metrics, buffers=buffers)

    def resume(self, snapshot: Snapshot) -> None:
        """Go on from `snapshot`.

        Raises:
            CheckpointError: it belongs to another training or policy.
        """
        there, here = snapshot.state["origin"], self.origin
        if there.get("training_key") != here.get("training_key"):
            raise CheckpointError(
                f"The checkpoint of step {snapshot.step} belongs to the training {there.get('training_key')}, not to "
                f"{here.get('training_key')}: remove it from this training's folder."
            )
        restore(snapshot, self.agent, self.ema, self.optimizer)
        self.step, self.skipped = snapshot.step, snapshot.state["skipped"]
        self.seconds = snapshot.state["seconds"]
        self.window = Window(snapshot.state["window"])


def compile_head(head: torch.nn.Module) -> None:
    """Compile both passes of the head, that with gradients and the derivative, in place; names of weights stay."""
    head.compile()
    head.jvp = torch.compile(head.jvp)
