"""One attempt at a training: put the parts together, resume, run the loop, describe the result."""

import contextlib
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from roboimi.errors import DiskFullError, Interrupted
from roboimi.progress import Progress
from roboimi.storage.launch_record import code_revision
from roboimi.storage.store import Store
from roboimi.vla.agent import VLAAgent
from roboimi.vla.build import build_agent
from roboimi.vla.config import ALGORITHM, TrainRun
from roboimi.vla.cpu_matmul import fast_float32_products
from roboimi.vla.data.feature_cache import FeatureCache, committed_cache, open_feature_cache
from roboimi.vla.data.loader import WindowLoader
from roboimi.vla.data.manifest import DatasetRef
from roboimi.vla.data.sampler import WindowSampler
from roboimi.vla.data.simple_robot_dataset import SimpleRobotDataset
from roboimi.vla.data.statistics import compute_statistics
from roboimi.vla.encode_features import encode_features
from roboimi.vla.models.encoder_spec import EncoderSpec
from roboimi.vla.training.checkpoint import Checkpoints
from roboimi.vla.training.device import choose_device, cpu_threads
from roboimi.vla.training.failures import record_failure
from roboimi.vla.training.lease import Lease
from roboimi.vla.training.loop import Loop, RolloutValidation
from roboimi.vla.training.metrics import FILE as METRICS
from roboimi.vla.training.metrics import MetricsLog, read_metrics
from roboimi.vla.training.optim import trainable_parameters
from roboimi.vla.training.records import TRACKING, TrainResult
from roboimi.vla.training.rng import preserved_rng
from roboimi.vla.training.stop import StopSignal
from roboimi.vla.training.swanlab_sink import SwanLabSink
from roboimi.vla.training.trainer import Batch, Trainer
from roboimi.vla.training.watchdog import Watchdog
from roboimi.vla.training.writer import CheckpointWriter

HELD_OUT_WINDOWS = 256
"""At most so many windows of the validation split, evenly spaced, make up the held-out loss."""

SECONDS_FOR_TRACKING_WHEN_STOPPED = 3.0
"""Whoever sends SIGTERM waits some 20 to 30 s before SIGKILL."""


def run_session(
    run: TrainRun,
    dataset: DatasetRef,
    *,
    store: Store,
    training: str,
    key: str,
    attempts: int,
    lease: Lease,
    progress: Progress | None,
    rollouts: RolloutValidation | None,
) -> TrainResult:
    """Train to the last step, from the newest checkpoint where there is one.

    The arguments and errors are those of `roboimi.vla.train_vla.train`; `training` and `key` name the training,
    `attempts` counts this one too, `lease` is held.
    """
    settings, folder = run.train, store.folder(training)
    watchdog = Watchdog(lambda error: record_failure(store, training, error, attempts))
    with preserved_rng(), cpu_threads(settings.threads), fast_float32_products(), watchdog:
        seed_everything(settings.seed)
        data = TrainingData(run, dataset, store)
        origin = {**data.origin, "training_key": key}
        trainer = Trainer(data.build_agent(), data.batch, settings, origin, watchdog)
        checkpoints = Checkpoints(
            store, training, settings.keep_checkpoints, epoch=lease.epoch, abandoned=lease.abandoned
        )
        require_room(folder, trainer, settings.keep_checkpoints)
        checkpoints.recover()
        newest = checkpoints.newest()
        if newest is not None:
            trainer.resume(newest[1])
            checkpoints.take_over((newest[0], trainer.step))
        with (
            MetricsLog(folder / METRICS, trainer.step, newest[1].metrics if newest else None) as metrics,
            tracked(run, folder, key) as sink,
            _shown(progress, run) as shown,
            StopSignal() as stop,
        ):
            writer = CheckpointWriter(
                checkpoints,
                after_commit=lambda: tell_watchers(store, training, folder, sink),
                saved=(trainer.step, newest[0]) if newest else None,
            )
            loop = Loop(
                trainer,
                writer,
                metrics,
                lease=lease,
                sink=sink,
                stop=stop,
                progress=shown,
                held_out=data.held_out(),
                rollouts=rollouts or default_rollouts(run),
            )
            checkpoint = loop.run()
        lines = read_metrics(folder / METRICS)
    return TrainResult(
        training=training,
        checkpoint=checkpoints.prefix(checkpoint),
        policy_digest=checkpoints.policy_digest(checkpoint),
        steps=trainer.step,
        skipped=trainer.skipped,
        loss=next((line.get("loss") for line in reversed(lines) if line["kind"] == "train"), None),
        validation_loss=next(
            (line["validation_loss"] for line in reversed(lines) if line["kind"] == "validation"), None
        ),
        parameters=sum(parameter.numel() for parameter in trainable_parameters(trainer.agent).values()),
        seconds=round(trainer.seconds, 3),
        attempts=attempts,
        tracking=sink.finish(),
    )


class TrainingData:
    """A dataset as this training reads it: windows with cached features where the policy sees, without pictures else.

    Args:
        run: what to train.
        dataset: what on.
        store: where the features are; encoded now if they are not there yet.
    """

    def __init__(self, run: TrainRun, dataset: DatasetRef, store: Store):
        self._run, self._ref = run, dataset
        self.device = choose_device(run.train.device)
        self._features: FeatureCache | None = None
        if run.needs == "images":
            digest = EncoderSpec.parse(run.encoder).digest
            self._features = committed_cache(store, dataset.digest, digest)
            if self._features is None:
                encode_features(store, dataset, run.encoder, device=run.train.device)
                self._features = open_feature_cache(store, dataset.digest, digest)
        self._loader = self._load("train")
        self._sampler = WindowSampler(len(self._loader), run.train.batch_size, run.train.seed)

    @property
    def origin(self) -> dict[str, Any]:
        """Digests of all that goes in, for the record."""
        encoder = EncoderSpec.parse(self._run.encoder).digest if self._run.needs == "images" else None
        digests = {"dataset": self._ref.digest, "encoder": encoder}
        return {**digests, "algorithm": ALGORITHM["train"], "git_revision": code_revision()}

    def build_agent(self) -> VLAAgent:
        """The untrained policy with this dataset's statistics, without the frozen tower: its features are cached."""
        width = self._features.feature_dim if self._features else None
        agent = build_agent(self._run.config, feature_dim=width, statistics=compute_statistics(self._ref))
        return agent.to(self.device)

    def batch(self, step: int) -> Batch:
        """The batch of one step, on the device."""
        return self._on_device(self._loader.batch(self._sampler.batch_indices(step)))

    def held_out(self) -> list[Batch]:
        """Batches of held-out episodes; none where the dataset holds nothing out."""
        if not self._ref.manifest.entries("validation"):
            return []
        loader, size = self._load("validation"), self._run.train.batch_size
        count = min(HELD_OUT_WINDOWS, len(loader))
        windows = np.unique(np.linspace(0, len(loader) - 1, count).round().astype(np.int64))
        # Batches of one size, so that the mean of their losses is the mean over their windows.
        size = min(size, len(windows))
        whole = windows[: len(windows) // size * size].reshape(-1, size)
        return [self._on_device(loader.batch(row)) for row in whole]

    def _load(self, split: str) -> WindowLoader:
        config = self._run.config
        dataset = SimpleRobotDataset(
            self._ref,
            split,
            obs_horizon=int(config["obs_horizon"]),
            pred_horizon=int(config["pred_horizon"]),
            vision="features" if self._features else "none",
            features=self._features,
        )
        return WindowLoader(dataset)

    def _on_device(self, batch: Batch) -> Batch:
        return {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()}


def default_rollouts(run: TrainRun) -> RolloutValidation:
    """Rollouts in the task's environment; a policy that sees gets its frozen tower, which training does without."""

    def roll_out(agent: VLAAgent) -> dict:
        from roboimi.vla.eval_vla import rollout_validation
        from roboimi.vla.models.encoder import load_vision_model

        if run.needs == "images" and agent.vision_backbone.vision_model is None:
            agent.vision_backbone.attach_vision_model(load_vision_model(run.encoder).to(agent.device))
        return rollout_validation(agent, run.task, episodes=run.train.rollout_episodes)

    return roll_out


@contextlib.contextmanager
def tracked(run: TrainRun, folder: Path, key: str) -> Iterator[SwanLabSink]:
    """A SwanLab run that is closed when the block ends, within seconds when a signal ended it."""
    sink = SwanLabSink(run.train.tracking, folder, training_key=key, name=run_name(run, key), config=run.config)
    try:
        yield sink
    except Interrupted:
        sink.finish(SECONDS_FOR_TRACKING_WHEN_STOPPED)
        raise
    finally:
        sink.finish()


def tell_watchers(store: Store, training: str, folder: Path, sink: SwanLabSink) -> None:
    """Show those who watch from elsewhere the metrics, and where the curves are."""
    store.put(f"{training}/{METRICS}", folder / METRICS)
    if sink.url is not None:
        store.write_json(f"{training}/{TRACKING}", {"url": sink.url})


def run_name(run: TrainRun, key: str) -> str:
    """A name that tells arms apart, such as `transfer_cube-images-96-3f9f96cb`."""
    parts = [run.task.name, run.needs or "blind", run.config["backbone"].get("per_view_output_dim"), key[:8]]
    return "-".join(str(part) for part in parts if part)


def seed_everything(seed: int) -> None:
    """Seed the global generators: the initial weights come from torch's."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def require_room(folder: Path, trainer: Trainer, keep: int) -> None:
    """Make sure that `keep` checkpoints, and the one that is being written, fit on the disk.

    Raises:
        DiskFullError: they do not.
    """
    state = sum(tensor.nbytes for tensor in trainer.agent.trainable_state_dict().values())
    moments = 2 * sum(parameter.nbytes for parameter in trainable_parameters(trainer.agent).values())
    there = sum(path.stat().st_size for path in (folder / "checkpoints").rglob("*.safetensors"))
    needed = (keep + 1) * (2 * state + moments) - there
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DiskFullError(
            f"Checkpoints in {folder} need {needed / 1e6:,.0f} MB and the disk has {free / 1e6:,.0f} MB free: free "
            "some space, or lower train.keep_checkpoints."
        )


@contextlib.contextmanager
def _shown(progress: Progress | None, run: TrainRun) -> Iterator[Progress]:
    """The caller's progress, left open, or one of our own."""
    if progress is not None:
        yield progress
        return
    with Progress.start(f"train {run.task.name}", total=run.train.steps) as own:
        yield own
