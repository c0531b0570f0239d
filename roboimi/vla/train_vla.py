"""Train a policy: as a function, and as `python -m roboimi.vla.train_vla dataset=PATH store=PATH head=small`.

```
trainings/<key>/            key: 32 hex digits of the hash of all that decides the result
    TRAINING.json           what is trained: fingerprint, configuration, dataset contract, attempts
    metrics.jsonl           one line a log step, held-out loss and rollout validation
    checkpoints/, LATEST.json   see `training/checkpoint.py`
    swanlab/                what SwanLab writes
    WRITER.lock             who is training, if anybody
    RESULT.json             the finished training; written last: the commit
```
A training that is finished is recognised by its key and returned at once, without a deep-learning library; one that was
stopped or killed goes on from its newest checkpoint.
"""

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from roboimi.errors import ConfigError
from roboimi.progress import Progress
from roboimi.storage.store import Store, open_store
from roboimi.vla.config import TrainRun, training_key
from roboimi.vla.data.manifest import DatasetRef, resolve_dataset
from roboimi.vla.hydra_command import run_hydra_command
from roboimi.vla.models.encoder_spec import EncoderSpec
from roboimi.vla.training.lock import single_writer
from roboimi.vla.training.records import RESULT, TrainResult, open_record, training_prefix

if TYPE_CHECKING:
    from roboimi.vla.agent import VLAAgent


def train(
    run: TrainRun,
    *,
    store: Store,
    progress: Progress | None = None,
    rollouts: "Callable[[VLAAgent], Mapping[str, Any]] | None" = None,
) -> TrainResult:
    """Train, or go on training, or return what is already trained.

    Args:
        run: what to train.
        store: where trainings, and the features of image policies, live.
        progress: shows the step; None: one of its own.
        rollouts: the rollout validation of every `train.rollout_every` steps; None: `train.rollout_episodes` episodes
            in the task's environment.

    Raises:
        ConfigError: settings contradict each other or the dataset.
        DataError: the dataset or its features are missing or damaged.
        HeldByAnotherError: a live process trains under the same key.
        CheckpointError: there are checkpoints, but none can be read, or the folder belongs to another training.
        NonFiniteError: more than `train.max_nonfinite` updates had a loss or gradient that is not finite.
        DiskFullError: no room for the checkpoints.
        Interrupted: stopped by a signal; the state is committed.
    """
    dataset = resolve_dataset(run.dataset)
    check_against_dataset(run, dataset)
    encoder = EncoderSpec.parse(run.encoder) if run.needs == "images" else None
    fingerprint = run.fingerprint(dataset.digest, encoder.digest if encoder else None)
    key = training_key(fingerprint)
    training = training_prefix(key)
    if finished := store.committed(training, RESULT):
        return TrainResult.from_document(finished)
    with single_writer(store.folder(training), training):
        if finished := store.committed(training, RESULT):  # by whoever held the lock until now
            return TrainResult.from_document(finished)
        record = open_record(store, training, run, dataset, fingerprint)
        # Only from here on is a deep-learning library needed; its import alone takes seconds.
        from roboimi.vla.training.session import run_session

        attempts = len(record["attempts"])
        result = run_session(
            run,
            dataset,
            store=store,
            training=training,
            key=key,
            attempts=attempts,
            progress=progress,
            rollouts=rollouts,
        )
        store.publish(training, RESULT, result.to_document())
    return result


def check_against_dataset(run: TrainRun, dataset: DatasetRef) -> None:
    """Make sure before any work that a dataset is of the task and long enough.

    Raises:
        ConfigError: dimensions, cameras, rate or horizon contradict the dataset.
    """
    task, contract = run.task, dataset.contract
    pairs = [
        ("task.state_dim", task.state_dim, contract.state_dim),
        ("task.action_dim", task.action_dim, contract.action_dim),
        ("task.control_hz", task.control_hz, contract.fps),
    ]
    if run.needs == "environment_state":
        pairs.append(("task.environment_state_dim", task.environment_state_dim, contract.environment_state_dim))
    if run.needs == "images":
        pairs.append(("task.cameras", list(task.cameras), list(contract.cameras)))
    for name, configured, found in pairs:
        if configured != found:
            raise ConfigError(
                f"The configuration has {name}={configured} and the dataset {dataset.root} has {found}: "
                "choose the task that the dataset was recorded in, or another dataset."
            )
    horizon = int(run.config["pred_horizon"])
    for entry in dataset.manifest.entries("train"):
        if entry.frames < horizon:
            raise ConfigError(
                f"The configuration has pred_horizon={horizon} and {entry.file} of the dataset {dataset.root} has only "
                f"{entry.frames} frames: shorten the horizon, or leave the episode out."
            )


def main() -> None:
    """The command: train what the command line describes and print where the last checkpoint lies."""
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    run_hydra_command("train_vla", _command)


def _command(config: dict[str, Any]) -> None:
    run = TrainRun.from_config(config)
    check_against_dataset(run, resolve_dataset(run.dataset))  # before a store is made for nothing
    store = open_store(config["store"])
    result = train(run, store=store)
    print(f"{'found' if result.adopted else 'trained'} {store.uri}/{result.checkpoint}")


if __name__ == "__main__":
    main()
