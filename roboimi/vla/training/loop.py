"""The step loop: update, log, validate, checkpoint, stop.

Step n is a function of (configuration, n, state after n − 1) alone: its windows come from (seed, n), its noise and
times from a generator seeded by (seed, n), its learning rate from n. So a training that goes on from a checkpoint is,
on a CPU with the same number of threads, the uninterrupted training to the last bit.

Order within one turn: update · log line · held-out loss · checkpoint when due · rollout validation when due.
"""

import contextlib
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from roboimi.errors import CheckpointError, Interrupted, NonFiniteError
from roboimi.progress import Progress
from roboimi.vla.agent import VLAAgent
from roboimi.vla.config import TrainConfig
from roboimi.vla.training.checkpoint import Checkpoints, Snapshot, restore, take_snapshot
from roboimi.vla.training.ema import EMA
from roboimi.vla.training.metrics import MetricsLog, Window, memory_mb
from roboimi.vla.training.optim import (
    clip_gradients,
    learning_rate,
    make_optimizer,
    set_learning_rate,
    trainable_parameters,
)
from roboimi.vla.training.rng import preserved_rng, step_seed
from roboimi.vla.training.stop import StopNow, StopSignal

VALIDATIONS = 10
"""How often, evenly over a training, the loss on held-out episodes is taken."""

Batch = dict[str, Tensor]
RolloutValidation = Callable[[VLAAgent], Mapping[str, Any]]
"""Rolls the agent out and says how it went: plain JSON values, `success_rate` among them."""


class Sink(Protocol):
    """Where log lines go besides the metrics file."""

    def log(self, values: Mapping[str, Any], step: int) -> None:
        """Take the numbers of one line; returns at once."""


class Trainer:
    """A training in memory: what one update changes, and what a checkpoint holds.

    Args:
        agent: the policy, on its device.
        batches: step → batch on the agent's device.
        settings: how to train.
        origin: where this training comes from (keys, digests, code revision); travels in every checkpoint.

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
    ):
        self.agent = agent.train()
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
        started = time.perf_counter()
        batch = self._batches(self.step)
        loaded = time.perf_counter()
        set_learning_rate(self.optimizer, self.rate(self.step))
        self._generator.manual_seed(step_seed(self.settings.seed, self.step))
        loss, parts = self.agent.compute_loss(batch, self._generator)
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

    @torch.no_grad()
    def held_out_loss(self, batches: list[Batch]) -> float:
        """Mean loss of the averaged weights over `batches`, with the same noise and times at every call."""
        with self.evaluating():
            self._generator.manual_seed(step_seed(self.settings.seed, -1))
            losses = torch.stack([self.agent.compute_loss(batch, self._generator)[0] for batch in batches])
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

    def snapshot(self) -> Snapshot:
        """All that the next update depends on, copied."""
        state = {
            "skipped": self.skipped,
            "seconds": self.seconds,
            "window": self.window.state_dict(),
            "origin": self.origin,
        }
        return take_snapshot(self.step, self.agent, self.ema, self.optimizer, state)

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


class Loop:
    """Runs a trainer to its last step and keeps its records.

    Args:
        trainer: fresh or resumed.
        checkpoints: of this training.
        metrics: open for appending.
        sink: gets each log line too.
        stop: tells when a signal asked to stop.
        progress: shows the step.
        held_out: batches of held-out episodes; may be empty.
        rollouts: the rollout validation; None: none.
        saved: the checkpoint that the trainer was resumed from, if any.
    """

    def __init__(
        self,
        trainer: Trainer,
        checkpoints: Checkpoints,
        metrics: MetricsLog,
        *,
        sink: Sink,
        stop: StopSignal,
        progress: Progress,
        held_out: list[Batch],
        rollouts: RolloutValidation | None,
        saved: str | None = None,
    ):
        self._trainer, self._checkpoints, self._metrics = trainer, checkpoints, metrics
        self._sink, self._stop, self._progress = sink, stop, progress
        self._held_out, self._rollouts = held_out, rollouts
        self._settings = trainer.settings
        self._saved = (trainer.step, saved) if saved else None
        self._saved_at = time.monotonic()

    def run(self) -> str:
        """Train to the last step.

        Returns:
            The name of the last checkpoint.

        Raises:
            Interrupted: a signal asked to stop; the state is committed.
            NonFiniteError: too many updates had to be skipped; the last checkpoint is from before the one too many.
            DiskFullError, StoreError: a checkpoint could not be written.
        """
        trainer, settings = self._trainer, self._settings
        self._validate_when_due()  # owed by a training that was stopped inside its validation
        while trainer.step < settings.steps:
            self._leave_when_asked()
            loss = trainer.advance()
            self._check_finite()
            self._progress.update(trainer.step, f"loss {loss:.4f}")
            if trainer.step % settings.log_every == 0 or trainer.step == settings.steps:
                self._write_line()
            if self._held_out and self._held_out_loss_due():
                self._record("validation", {"validation_loss": trainer.held_out_loss(self._held_out)})
            if time.monotonic() - self._saved_at >= settings.checkpoint_interval_s:
                self._save()
            self._validate_when_due()
        return self._save()

    def _held_out_loss_due(self) -> bool:
        step, last = self._trainer.step, self._settings.steps
        return step == last or step % max(1, last // VALIDATIONS) == 0

    def _leave_when_asked(self) -> None:
        if self._stop.number is None:
            return
        self._save()
        name = signal.Signals(self._stop.number).name
        raise Interrupted(
            f"Stopped by {name} at step {self._trainer.step} of {self._settings.steps}, which is saved: run the same "
            "command again to go on.",
            self._stop.number,
        )

    def _check_finite(self) -> None:
        trainer, settings = self._trainer, self._settings
        if trainer.skipped > settings.max_nonfinite:
            raise NonFiniteError(
                f"The loss or a gradient was not finite in {trainer.skipped} steps by step {trainer.step}, "
                f"train.max_nonfinite={settings.max_nonfinite} are tolerated: lower train.learning_rate or "
                "train.grad_clip, or validate the dataset."
            )

    def _write_line(self) -> None:
        trainer = self._trainer
        timings = trainer.timings.means()
        values = trainer.window.means() | {
            "lr": trainer.rate(trainer.step - 1),
            "skipped": trainer.skipped,
            **{name: round(seconds, 6) for name, seconds in timings.items()},
            "samples_per_s": round(self._settings.batch_size / timings["step_s"], 1),
            "seconds": round(trainer.seconds, 3),
            "memory_mb": memory_mb(),
        }
        if trainer.agent.device.type == "cuda":
            values["gpu_memory_mb"] = round(torch.cuda.max_memory_allocated(trainer.agent.device) / 1e6, 1)
        trainer.window, trainer.timings = Window(), Window()
        self._record("train", values)

    def _record(self, kind: str, values: Mapping[str, Any]) -> None:
        line = self._metrics.write(kind, self._trainer.step, values)
        self._sink.log({f"{kind}/{name}": value for name, value in line.items()}, self._trainer.step)

    def _save(self) -> str:
        """Commit a checkpoint of the present step, unless there is one."""
        if self._saved is None or self._saved[0] != self._trainer.step:
            # A checkpoint vouches for the lines before it.
            self._metrics.sync()
            self._saved = (self._trainer.step, self._checkpoints.save(self._trainer.snapshot()))
            self._saved_at = time.monotonic()
        return self._saved[1]

    def _validate_when_due(self) -> None:
        step, every = self._trainer.step, self._settings.rollout_every
        if self._rollouts is None or not every or not step or step % every or self._metrics.has_rollouts(step):
            return
        # Saved first: a renderer that crashes takes this process along.
        self._save()
        try:
            with self._stop.interruptible(), self._trainer.evaluating():
                result = self._rollouts(self._trainer.agent)
        except StopNow:
            self._leave_when_asked()
        else:
            self._record("rollout", result)
