"""Checkpoints in the background: the training never waits, the newest snapshot gets through, failures are told."""

import threading

import pytest

from roboimi.errors import DiskFullError, FencedError, StoreAccessError, StoreUnavailableError
from roboimi.storage.store import open_store
from roboimi.vla.training import writer as writer_module
from roboimi.vla.training.checkpoint import Checkpoints
from roboimi.vla.training.latest import LATEST
from roboimi.vla.training.snapshot import Snapshot
from roboimi.vla.training.writer import CheckpointWriter

TRAINING = "trainings/abc"


def snapshot(step):
    import torch

    tensors = {stem: {"x": torch.full((4,), float(step))} for stem in ("model", "ema", "optimizer", "rng")}
    return Snapshot(step, tensors, {"step": step, "ema_updates": step}, "")


class Gate:
    """A store whose commits wait at a gate, or fail as told."""

    def __init__(self, store):
        self._store = store
        self.open, self.reached = threading.Event(), threading.Event()
        self.failures = []
        self.open.set()

    def __getattr__(self, name):
        return getattr(self._store, name)

    def publish(self, *arguments):
        self.reached.set()
        assert self.open.wait(30)
        if self.failures:
            raise self.failures.pop(0)
        return self._store.publish(*arguments)


@pytest.fixture
def store(tmp_path):
    return Gate(open_store(tmp_path))


@pytest.fixture(autouse=True)
def _hurry(monkeypatch):
    monkeypatch.setattr(writer_module, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(writer_module, "LONGEST_PAUSE_S", 0.02)


@pytest.fixture
def checkpoints(store):
    return Checkpoints(store, TRAINING, epoch=1)


def steps(store):
    return [int(name.split("-")[0]) for name in store.list(f"{TRAINING}/checkpoints")]


def test_the_last_snapshot_is_committed_when_it_is_finished(checkpoints, store):
    writer = CheckpointWriter(checkpoints)
    writer.submit(snapshot(3))
    name = writer.finish(30)
    assert store.read_json(f"{TRAINING}/{LATEST}")["checkpoint"] == name
    assert checkpoints.newest()[1].step == 3


def test_nothing_handed_over_is_nothing_to_wait_for(checkpoints):
    assert CheckpointWriter(checkpoints).finish(30) is None
    assert CheckpointWriter(checkpoints, saved=(7, "00000007-e1-00000000")).finish(30) == "00000007-e1-00000000"


def test_a_newer_snapshot_takes_the_place_of_the_one_that_waits(checkpoints, store):
    store.open.clear()
    writer = CheckpointWriter(checkpoints)
    writer.submit(snapshot(1))
    assert store.reached.wait(30)
    for step in (2, 3, 4):
        writer.submit(snapshot(step))  # returns at once, though nothing moves
    store.open.set()
    assert writer.finish(30)
    assert steps(store) == [1, 4]


def test_a_store_that_is_away_is_waited_for_and_told_once(checkpoints, store):
    store.failures = [StoreUnavailableError("Away.")] * 5
    after = []
    writer = CheckpointWriter(checkpoints, after_commit=lambda: after.append(0))
    writer.submit(snapshot(1))
    assert writer.finish(30)
    assert (steps(store), after) == ([1], [0])
    assert ["does not answer" in alarm for alarm in writer.take_alarms()] == [True]
    assert writer.take_alarms() == []


def test_while_the_store_is_away_the_newest_is_kept_and_the_older_given_up(checkpoints, store):
    store.open.clear()
    store.failures = [StoreUnavailableError("Away.")]
    writer = CheckpointWriter(checkpoints)
    writer.submit(snapshot(1))
    assert store.reached.wait(30)
    writer.submit(snapshot(2))
    store.open.set()
    assert writer.finish(30)
    assert steps(store) == [2]
    assert store.list(f"{TRAINING}/spool") == []


def test_what_waits_in_memory_is_spooled_even_if_the_thread_is_stuck(checkpoints, store):
    store.open.clear()
    writer = CheckpointWriter(checkpoints)
    writer.submit(snapshot(1))
    assert store.reached.wait(30)
    writer.submit(snapshot(2))
    assert writer.finish(0.2) is None
    assert (writer.spooled, writer.committed) == (2, None)
    store.open.set()
    writer._thread.join(30)
    assert Checkpoints(store, TRAINING, epoch=2).newest()[1].step == 2


@pytest.mark.parametrize("error", [StoreAccessError("Refused."), FencedError("Taken over."), RuntimeError("a bug")])
def test_what_cannot_be_waited_out_reaches_the_training(checkpoints, store, error):
    store.failures = [error]
    writer = CheckpointWriter(checkpoints)
    writer.submit(snapshot(1))
    with pytest.raises(type(error)):
        writer.finish(30)
    with pytest.raises(type(error)):
        writer.check()


def test_a_full_disk_costs_one_checkpoint_and_not_the_training(checkpoints, store):
    store.failures = [DiskFullError("Full.")]
    writer = CheckpointWriter(checkpoints)
    writer.submit(snapshot(1))
    writer.wait_until_safe(30)
    while not (alarms := writer.take_alarms()):
        pass
    assert "training goes on" in alarms[0]
    writer.check()
    writer.submit(snapshot(2))
    assert writer.finish(30)
    assert steps(store) == [2]


def test_a_full_disk_at_the_end_is_told(checkpoints, store):
    store.failures = [DiskFullError("Full.")]
    writer = CheckpointWriter(checkpoints)
    writer.submit(snapshot(1))
    with pytest.raises(DiskFullError):
        writer.finish(30)


def test_trouble_after_a_commit_is_an_alarm(checkpoints, store):
    def fail():
        raise StoreAccessError("No right to do this.")

    writer = CheckpointWriter(checkpoints, after_commit=fail)
    writer.submit(snapshot(1))
    assert writer.finish(30)
    assert "No right to do this" in writer.take_alarms()[0]


def test_memory_is_used_again(checkpoints):
    writer = CheckpointWriter(checkpoints)
    first = snapshot(1)
    writer.submit(first)
    assert writer.finish(30)
    assert writer.buffers.take() is first.tensors
