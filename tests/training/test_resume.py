"""Whatever stops a training, the one that goes on is the uninterrupted one to the last bit."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch

from roboimi.errors import CheckpointError, DiskFullError, HeldByAnotherError, Interrupted, NonFiniteError
from roboimi.storage.store import open_store
from roboimi.vla.train_vla import train
from roboimi.vla.training.checkpoint import Checkpoints
from roboimi.vla.training.latest import LATEST
from roboimi.vla.training.manifest import TENSOR_FILES
from roboimi.vla.training.metrics import TIMINGS, read_metrics

ROOT = Path(__file__).parents[2]


class Watch:
    """A progress that hands on each step."""

    def __init__(self, see):
        self.see = see

    def update(self, done, note=""):
        self.see(done)


def at_step(step, act):
    """A progress that acts once a step is reached."""
    return Watch(lambda done: act() if done == step else None)


def interrupt(number=signal.SIGTERM):
    os.kill(os.getpid(), number)


def bits(store, result):
    """All tensors of the last checkpoint as bytes, and its counters."""
    folder = store.root / result.checkpoint
    tensors = {
        f"{stem}/{name}": tensor.numpy().tobytes()
        for stem in TENSOR_FILES
        for name, tensor in safetensors.torch.load_file(folder / f"{stem}.safetensors").items()
    }
    state = json.loads((folder / "state.json").read_text())
    return tensors, {name: value for name, value in state.items() if name not in TIMINGS}


def curves(store, result):
    """The metrics lines without what differs from run to run."""
    lines = read_metrics(store.root / result.training / "metrics.jsonl")
    return [{name: value for name, value in line.items() if name not in TIMINGS} for line in lines]


def assert_same_training(store, result, other_store, other_result):
    assert result.policy_digest == other_result.policy_digest
    assert bits(store, result) == bits(other_store, other_result)
    assert curves(store, result) == curves(other_store, other_result)


@pytest.fixture
def reference(make_run, tmp_path):
    """The uninterrupted training of six steps."""
    store = open_store(tmp_path / "reference")
    return store, train(make_run(), store=store)


@pytest.fixture
def checkpoints_of(store):
    """The checkpoints of the one training in the store."""

    def find():
        (key,) = store.list("trainings")
        return Checkpoints(store, f"trainings/{key}")

    return find


@pytest.mark.parametrize("at", [[3], [1, 2, 5]], ids=["once", "three times"])
def test_a_stopped_training_goes_on_bit_for_bit(make_run, store, reference, at):
    run = make_run()
    for step in at:
        with pytest.raises(Interrupted) as raised:
            train(run, store=store, progress=at_step(step, interrupt))
        assert raised.value.exit_code == 143
        assert f"step {step} of 6" in str(raised.value)
    result = train(run, store=store)
    assert result.attempts == len(at) + 1
    assert_same_training(store, result, *reference)
    assert [line["step"] for line in curves(store, result) if line["kind"] == "train"] == [2, 4, 6]


def test_a_finished_training_is_returned_and_nothing_is_trained(make_run, store, reference):
    reference_store, expected = reference
    files = {path: path.stat().st_mtime_ns for path in reference_store.root.rglob("*") if path.is_file()}
    again = train(make_run("train.log_every=1", "train.keep_checkpoints=7"), store=reference_store)
    assert again.adopted
    assert not expected.adopted
    assert (again.checkpoint, again.policy_digest) == (expected.checkpoint, expected.policy_digest)
    assert {path: path.stat().st_mtime_ns for path in reference_store.root.rglob("*") if path.is_file()} == files


def test_another_seed_or_setting_is_another_training(make_run, store, reference):
    _, expected = reference
    for override in ("train.seed=1", "train.learning_rate=0.02"):
        result = train(make_run(override), store=store)
        assert result.training != expected.training
        assert result.policy_digest != expected.policy_digest


def test_how_often_is_logged_and_saved_changes_no_weight(make_run, store, reference):
    run = make_run("train.log_every=1", "train.checkpoint_interval_s=0", "train.keep_checkpoints=2")
    result = train(run, store=store)
    assert bits(store, result)[0] == bits(*reference)[0]
    assert len(store.list(f"{result.training}/checkpoints")) == 2


def test_the_global_generators_of_the_caller_are_left_alone(make_run, store):
    import random

    import numpy as np
    import torch

    before = random.getstate(), np.random.get_state()[2], torch.get_rng_state()
    train(make_run(), store=store)
    assert random.getstate() == before[0]
    assert np.random.get_state()[2] == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])


def test_sigint_ends_with_its_own_code_and_a_second_signal_changes_nothing(make_run, store, checkpoints_of):
    def twice():
        interrupt(signal.SIGINT)
        interrupt(signal.SIGTERM)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted) as raised:
        train(make_run(), store=store, progress=at_step(4, twice))
    assert raised.value.exit_code == 130
    assert checkpoints_of().newest()[1].step == 4
    assert signal.getsignal(signal.SIGINT) is before


def test_damage_costs_steps_but_not_the_result(make_run, store, reference, checkpoints_of):
    run = make_run("train.checkpoint_interval_s=0")
    with pytest.raises(Interrupted):
        train(run, store=store, progress=at_step(4, interrupt))
    checkpoints = checkpoints_of()
    newest = checkpoints.newest()[0]
    # On a busy machine a snapshot may have taken the place of the one before it, so that step 3 was never written.
    saved = sorted(int(name.split("-")[0]) for name in store.list(checkpoints.prefix(newest).rpartition("/")[0]))
    weights = store.root / checkpoints.prefix(newest) / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    steps = []
    result = train(run, store=store, progress=Watch(steps.append))
    assert steps == list(range(saved[-2] + 1, 7))
    assert_same_training(store, result, *reference)


def test_damage_of_all_checkpoints_is_not_hidden_by_a_fresh_start(make_run, store, checkpoints_of):
    with pytest.raises(Interrupted):
        train(make_run(), store=store, progress=at_step(3, interrupt))
    checkpoints = checkpoints_of()
    (store.root / checkpoints.prefix(checkpoints.newest()[0]) / "ema.safetensors").unlink()
    with pytest.raises(CheckpointError, match="none can be read"):
        train(make_run(), store=store)


def test_a_folder_of_another_training_is_refused_by_the_names_of_what_differs(make_run, store):
    with pytest.raises(Interrupted):
        train(make_run(), store=store, progress=at_step(1, interrupt))
    (key,) = store.list("trainings")
    record = store.read_json(f"trainings/{key}/TRAINING.json")
    record["fingerprint"]["config"]["train"]["learning_rate"] = 1.0
    record["fingerprint"]["dataset"] = "0" * 64
    store.write_json(f"trainings/{key}/TRAINING.json", record)
    with pytest.raises(CheckpointError, match=r"\(config.train.learning_rate, dataset\)"):
        train(make_run(), store=store)


def test_a_second_trainer_of_the_same_key_is_refused(make_run, store):
    def second():
        with pytest.raises(HeldByAnotherError, match=f"process {os.getpid()} on"):
            train(make_run("train.when_held=fail"), store=store)
        interrupt()

    with pytest.raises(Interrupted):
        train(make_run(), store=store, progress=at_step(2, second))


def test_a_diverging_training_ends_with_its_class_and_leaves_a_good_checkpoint(make_run, store, checkpoints_of):
    run = make_run("train.learning_rate=1e30", "train.max_nonfinite=2", "train.checkpoint_interval_s=0")
    with pytest.raises(NonFiniteError, match="max_nonfinite=2") as raised:
        train(run, store=store)
    assert (raised.value.exit_code, raised.value.failure_class, raised.value.retryable) == (20, "non-finite", False)
    _, snapshot = checkpoints_of().newest()
    assert snapshot.state["skipped"] == 2
    assert all(tensor.isfinite().all() for tensor in snapshot.tensors["model"].values())
    with pytest.raises(NonFiniteError):  # and again, from that checkpoint
        train(run, store=store)


def test_a_checkpoint_of_another_training_is_refused(make_run, store, checkpoints_of, tmp_path):
    other = open_store(tmp_path / "other")
    for seed, place in ((0, store), (1, other)):
        with pytest.raises(Interrupted):
            train(make_run(f"train.seed={seed}"), store=place, progress=at_step(2, interrupt))
    (foreign,) = (tmp_path / "other" / "trainings").glob("*/checkpoints/*")
    mine = store.root / checkpoints_of().prefix(checkpoints_of().newest()[0])
    shutil.rmtree(mine)
    shutil.copytree(foreign, mine.with_name(foreign.name))
    with pytest.raises(CheckpointError, match="belongs to the training"):
        train(make_run(), store=store)


def test_a_training_killed_before_its_result_was_written_saves_nothing_twice(make_run, store):
    run = make_run()
    result = train(run, store=store)
    (store.root / result.training / "RESULT.json").unlink()
    again = train(run, store=store)
    assert not again.adopted
    assert again.checkpoint == result.checkpoint
    assert (again.loss, again.validation_loss) == (result.loss, result.validation_loss)


def test_too_little_room_is_found_before_the_first_step(make_run, store):
    with pytest.raises(DiskFullError, match="keep_checkpoints") as raised:
        train(make_run("train.keep_checkpoints=1000000000"), store=store)
    assert raised.value.exit_code == 7


def test_the_policy_that_was_trained_is_the_one_that_is_loaded(make_run, store):
    import torch

    from roboimi.vla.training.reader import load_policy

    result = train(make_run(), store=store)
    tensors = safetensors.torch.load_file(store.root / result.checkpoint / "ema.safetensors")
    for prefix in (result.training, result.checkpoint):
        agent = load_policy(store, prefix, device="cpu")
        assert not agent.training
        state = agent.trainable_state_dict()
        assert state.keys() == tensors.keys()
        assert all(torch.equal(state[name], tensor) for name, tensor in tensors.items())
    online = load_policy(store, result.training, which="model", device="cpu").trainable_state_dict()
    assert any(not torch.equal(online[name], tensor) for name, tensor in tensors.items())
    with pytest.raises(CheckpointError, match="has no training"):
        load_policy(store, "trainings/nothing")
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_policy(store, f"{result.training}/checkpoints/00000001-00000000")


TRAIN_AND_WAIT = """
import sys
sys.path.insert(0, {root!r})
from roboimi.storage.store import open_store
from roboimi.vla.config import TrainRun
from roboimi.vla.train_vla import train
run = TrainRun.from_config({config!r})
class Slow:
    def update(self, done, note=""):
        print(done, flush=True)
        if done == {step}:
            sys.stdin.readline()
train(run, store=open_store({store!r}), progress=Slow())
"""


def test_a_killed_training_goes_on_bit_for_bit(make_run, store, reference):
    """kill -9 of a real process, with a step done since its last checkpoint, and a dead holder of the lease."""
    run = make_run("train.checkpoint_interval_s=0")
    code = TRAIN_AND_WAIT.format(root=str(ROOT), config=run.config, store=str(store.root), step=4)
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    steps = [int(process.stdout.readline()) for _ in range(4)]
    (key,) = store.list("trainings")
    while not (store.read_json(f"trainings/{key}/{LATEST}") or {}).get("step"):
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert steps == [1, 2, 3, 4]
    assert 1 <= store.read_json(f"trainings/{key}/{LATEST}")["step"] <= 3
    assert store.committed(f"trainings/{key}", "RESULT.json") is None
    assert_same_training(store, train(run, store=store), *reference)


def test_sigterm_to_the_command_commits_and_exits_with_143(tiny_overrides, store, dataset):
    overrides = [*tiny_overrides, "backbone=privileged_state", "train.steps=1000000", "train.log_every=1"]
    command = [sys.executable, "-m", "roboimi.vla.train_vla", *overrides]
    command += [f"dataset={dataset.root}", f"store={store.root}", "encoder=standin"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (lines := [line for path in store.root.rglob("metrics.jsonl") for line in read_metrics(path)]):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143
    (sentence,) = errors.splitlines()
    assert sentence.startswith("error: Stopped by SIGTERM at step ")
    (key,) = store.list("trainings")
    assert f"at step {store.read_json(f'trainings/{key}/{LATEST}')['step']} " in sentence
    assert len(lines) >= 1
