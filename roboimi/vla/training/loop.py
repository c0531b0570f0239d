"""The step loop: update, log, validate, checkpoint, stop.

Order within one turn: update · log line · held-out loss · checkpoint when due · rollout validation when due. For a
checkpoint the loop only takes the snapshot; writing and sending it is `writer.py`'s, in the background.
"""

import contextlib
import signal
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch

from roboimi.errors import Interrupted, NonFiniteError, RoboimiError, StoreUnavailableError
from roboimi.progress import Progress
from roboimi.vla.agent import VLAAgent
from roboimi.vla.training.lease import Lease
from roboimi.vla.training.metrics import MetricsLog, Window, memory_mb
from roboimi.vla.training.stop import StopNow, StopSignal
from roboimi.vla.training.trainer import Batch, Trainer
from roboimi.vla.training.writer import CheckpointWriter

VALIDATIONS = 10
"""How often, evenly over a training, the loss on held-out episodes is taken."""

SECONDS_TO_STOP = 18.0
"""Whoever sends SIGTERM waits some 20 to 30 s before SIGKILL: by then the last checkpoint is committed, or spooled."""
SECONDS_TO_END = 3600.0
"""How long a finished training waits for a store that does not answer before it leaves its last checkpoint spooled."""
SECONDS_TO_SPOOL = 120.0
"""How long a rollout validation is put off for the checkpoint before it."""

RolloutValidation = Callable[[VLAAgent], Mapping[str, Any]]
"""Rolls the agent out and says how it went: plain JSON values, `success_rate` among them."""


class Sink(Protocol):
    """Where log lines go besides the metrics file."""

    def log(self, values: Mapping[str, Any], step: int) -> None:
        """Take the numbers of one line; returns at once."""


class Loop:
    """Runs a trainer to its last step and keeps its records.

    Args:
        trainer: fresh or resumed.
        writer: brings snapshots into the store.
        metrics: open for appending.
        lease: of the training; None: none is needed.
        sink: gets each log line too.
        stop: tells when a signal asked to stop.
        progress: shows the step.
        held_out: batches of held-out episodes; may be empty.
        rollouts: the rollout validation; None: none.
    """

    def __init__(
        self,
        trainer: Trainer,
        writer: CheckpointWriter,
        metrics: MetricsLog,
        *,
        lease: Lease | None,
        sink: Sink,
        stop: StopSignal,
        progress: Progress,
        held_out: list[Batch],
        rollouts: RolloutValidation | None,
    ):
        self._trainer, self._writer, self._metrics, self._lease = trainer, writer, metrics, lease
        self._sink, self._stop, self._progress = sink, stop, progress
        self._held_out, self._rollouts = held_out, rollouts
        self._settings = trainer.settings
        self._saved_at = time.monotonic()

    def run(self) -> str:
        """Train to the last step.

        Returns:
            The name of the last checkpoint, which is committed.

        Raises:
            Interrupted: a signal asked to stop; the state is saved.
            NonFiniteError: too many updates had to be skipped; the last checkpoint is from before the one too many.
            FencedError: another writer has taken this training over.
            HungError: something stood still.
            DiskFullError: no room for the last checkpoint; for one before the last is only an alarm.
            StoreError: the store refuses, or did not answer for an hour after the last step.
        """
        try:
            return self._run()
        except Interrupted:
            raise
        except BaseException:
            # Whatever it was: what was handed over before it is brought to safety.
            with contextlib.suppress(RoboimiError):
                self._writer.finish(SECONDS_TO_STOP)
            raise

    def _run(self) -> str:
        trainer, settings = self._trainer, self._settings
        self._validate_when_due()  # owed by a training that was stopped inside its validation
        while trainer.step < settings.steps:
            self._leave_when_asked()
            self._look_around()
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
        return self._end()

    def _look_around(self) -> None:
        """What other threads found out since the last step."""
        self._writer.check()
        if self._lease is not None:
            self._lease.check()
        for sentence in self._writer.take_alarms():
            self._record("alarm", {"what": sentence})

    def _end(self) -> str:
        """Wait until the last step is committed."""
        self._save()
        name = self._writer.finish(SECONDS_TO_END, give_up=lambda: self._stop.number is not None)
        if name is None:
            self._leave_when_asked()
            raise StoreUnavailableError(
                f"The last checkpoint waits on this machine, the store has not answered for {SECONDS_TO_END:g} s: run "
                "the same command here once it does."
            )
        return name

    def _held_out_loss_due(self) -> bool:
        step, last = self._trainer.step, self._settings.steps
        return step == last or step % max(1, last // VALIDATIONS) == 0

    def _leave_when_asked(self) -> None:
        if self._stop.number is None:
            return
        self._save()
        name, step = signal.Signals(self._stop.number).name, self._trainer.step
        stopped = f"Stopped by {name} at step {step} of {self._settings.steps}"
        if self._writer.finish(SECONDS_TO_STOP) is not None:
            what = "which is saved: run the same command again to go on."
        elif self._writer.spooled == step:
            what = (
                "which is saved on this machine alone, since the store does not answer: run the same command again, on "
                "this machine, to go on; it brings the checkpoint into the store first."
            )
        else:
            saved = self._writer.committed
            what = (
                f"which could not be saved in {SECONDS_TO_STOP:g} s: run the same command again to go on from step "
                f"{saved[0] if saved else 0}."
            )
        raise Interrupted(f"{stopped}, {what}", self._stop.number)

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

    def _save(self) -> None:
        """Hand over a snapshot of the present step, unless that was done."""
        trainer = self._trainer
        if self._writer.submitted != trainer.step:
            self._writer.submit(trainer.snapshot(self._metrics.text(), self._writer.buffers))
            self._saved_at = time.monotonic()

    def _validate_when_due(self) -> None:
        step, every = self._trainer.step, self._settings.rollout_every
        if self._rollouts is None or not every or not step or step % every or self._metrics.has_rollouts(step):
            return
        # Saved first, at least on this machine: a renderer that crashes takes this process along.
        self._save()
        self._writer.wait_until_safe(SECONDS_TO_SPOOL)
        try:
            with self._stop.interruptible(), self._trainer.evaluating():
                result = self._rollouts(self._trainer.agent)
        except StopNow:
            self._leave_when_asked()
        else:
            self._record("rollout", result)
