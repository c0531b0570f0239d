"""Train a policy: as a function, and as `python -m roboimi.vla.train_vla dataset=PATH store=PATH head=small`.

```
trainings/<key>/            key: 32 hex digits of the hash of all that decides the result
    TRAINING.json           what is trained: fingerprint, configuration, dataset contract, attempts
    metrics.jsonl           one line a log step, held-out loss and rollout validation
    checkpoints/, LATEST.json   see `training/checkpoint.py`
    swanlab/                what SwanLab writes
    LEASE.json              who is training, if anybody, and the epoch of its checkpoints
    FAILURE.json            how the last attempt that failed ended; see FAILURES.md beside errors.py
    RESULT.json             the finished training; written last: the commit
```
A training that is finished is recognised by its key and returned at once, without a deep-learning library; one that was
stopped or killed goes on from its newest checkpoint; one that another process is at is waited for.
"""

import logging
import os
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from roboimi.errors import ConfigError
from roboimi.progress import Progress
from roboimi.storage.store import Store, open_store
from roboimi.vla.config import TrainRun, training_key
from roboimi.vla.data.manifest import DatasetRef, resolve_dataset
from roboimi.vla.hydra_command import run_hydra_command
from roboimi.vla.models.encoder_spec import EncoderSpec
from roboimi.vla.training.failures import record_failure, refuse_if_hopeless
from roboimi.vla.training.latest import LATEST, Latest
from roboimi.vla.training.lease import Lease, acquire
from roboimi.vla.training.manifest import Damaged
from roboimi.vla.training.records import RESULT, TrainResult, open_record, training_prefix

if TYPE_CHECKING:
    from roboimi.vla.agent import VLAAgent

log = logging.getLogger(__name__)


def train(
    run: TrainRun,
    *,
    store: Store,
    progress: Progress | None = None,
    rollouts: "Callable[[VLAAgent], Mapping[str, Any]] | None" = None,
    claimant: str = "",
) -> TrainResult:
    """Train, or go on training, or wait for whoever trains the same, or return what is already trained.

    Args:
        run: what to train.
        store: where trainings, and the features of image policies, live.
        progress: shows the step; None: one of its own.
        rollouts: the rollout validation of every `train.rollout_every` steps; None: `train.rollout_episodes` episodes
            in the task's environment.
        claimant: what the training is for, such as `<run id>/<arm>`: a retry of the same takes over at once from an
            attempt that may still seem alive.

    Raises:
        ConfigError: settings contradict each other or the dataset.
        DataError: the dataset or its features are missing or damaged.
        HeldByAnotherError: another process trains under the same key, and `train.when_held` is `fail`.
        FencedError: another process has taken the training over.
        CheckpointError: there are checkpoints, but none can be read, or the folder belongs to another training.
        NonFiniteError: more than `train.max_nonfinite` updates had a loss or gradient that is not finite.
        DiskFullError: no room for the checkpoints.
        StoreError: the store refuses, or does not answer.
        HungError: a data source or a device stands still.
        Interrupted: stopped by a signal; the state is saved.
        RoboimiError: the same code failed before under this key, in a way that running it again cannot help.
    """
    dataset = resolve_dataset(run.dataset)
    check_against_dataset(run, dataset)
    encoder = EncoderSpec.parse(run.encoder) if run.needs == "images" else None
    fingerprint = run.fingerprint(dataset.digest, encoder.digest if encoder else None)
    key = training_key(fingerprint)
    training = training_prefix(key)
    if finished := store.committed(training, RESULT):
        return TrainResult.from_document(finished)
    if not run.train.retry_failed:
        refuse_if_hopeless(store, training)
    lease = lease_of(store, training, run, claimant, progress)
    if lease is None:
        return TrainResult.from_document(store.committed(training, RESULT))
    with lease:
        if finished := store.committed(training, RESULT):  # by whoever held it until now
            return TrainResult.from_document(finished)
        record = open_record(store, training, run, dataset, fingerprint)
        attempts = len(record["attempts"])
        try:
            # Only from here on is a deep-learning library needed; its import alone takes seconds.
            from roboimi.vla.training.session import run_session

            result = run_session(
                run,
                dataset,
                store=store,
                training=training,
                key=key,
                attempts=attempts,
                lease=lease,
                progress=progress,
                rollouts=rollouts,
            )
        except BaseException as error:
            record_failure(store, training, error, attempts)
            raise
        store.publish(training, RESULT, result.to_document())
    return result


def lease_of(store: Store, training: str, run: TrainRun, claimant: str, progress: Progress | None) -> Lease | None:
    """Take the lease of a training, waiting for another holder's result where the settings say so.

    Returns:
        The lease; None: the training was finished meanwhile.

    Raises:
        HeldByAnotherError: another process holds it, and `train.when_held` is `fail`.
    """
    told: set[str] = set()

    def tell(sentence: str) -> None:
        if sentence not in told:
            told.add(sentence)
            log.warning("%s: waiting for its result", sentence)
        if progress is not None:
            latest = store.read_json(f"{training}/{LATEST}") or {}
            progress.update(latest.get("step", 0), sentence)

    try:
        above = max((commit.epoch for commit in Latest(store, training).read().values()), default=0)
    except Damaged:
        above = 0  # made anew by whoever holds the lease
    return acquire(
        store,
        training,
        claimant=claimant,
        when_held=run.train.when_held,
        above=above,
        finished=lambda: store.committed(training, RESULT) is not None,
        waiting=tell,
    )


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
    try:
        run_hydra_command("train_vla", _command)
    except SystemExit as end:
        # At once: a thread that waits for a store that is gone must not keep a process that was told to go.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(end.code if isinstance(end.code, int) else 1 if end.code else 0)


def _command(config: dict[str, Any]) -> None:
    run = TrainRun.from_config(config)
    check_against_dataset(run, resolve_dataset(run.dataset))  # before a store is made for nothing
    store = open_store(config["store"])
    result = train(run, store=store)
    print(f"{'found' if result.adopted else 'trained'} {store.uri}/{result.checkpoint}")


if __name__ == "__main__":
    main()
