"""Checkpoints: exact, copied, committed last, verified before use, and never silently given up."""

import json
import os
import resource
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from roboimi.errors import CheckpointError, DiskFullError, StoreError
from roboimi.storage.folder_store import FolderStore
from roboimi.storage.store import open_store
from roboimi.vla.training.checkpoint import FILES, LATEST, MANIFEST, Checkpoints, restore, take_snapshot
from roboimi.vla.training.ema import EMA
from roboimi.vla.training.optim import make_optimizer

TRAINING = "trainings/abc"


class SmallPolicy(nn.Module):
    """A network with a buffer and what checkpoints ask of an agent."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
        self.register_buffer("center", torch.zeros(3))

    def forward(self, x):
        return self.layers(x - self.center)

    def trainable_state_dict(self):
        return self.state_dict()

    def load_trainable_state_dict(self, state):
        self.load_state_dict(state)


class SmallTraining:
    """A few updates of a small policy."""

    def __init__(self, seed=0):
        torch.manual_seed(seed)
        self.agent = SmallPolicy()
        self.ema = EMA(self.agent, max_decay=0.9)
        self.optimizer = make_optimizer(self.agent, learning_rate=0.1, betas=(0.9, 0.95), weight_decay=0.01)
        self.step = 0

    def advance(self, updates=1):
        for _ in range(updates):
            self.agent(torch.randn(5, 3)).square().sum().backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.ema.update()
            self.step += 1
        return self

    def snapshot(self):
        return take_snapshot(self.step, self.agent, self.ema, self.optimizer, {"skipped": 2})

    def everything(self):
        snapshot = self.snapshot()
        return {f"{stem}/{name}": tensor for stem, group in snapshot.tensors.items() for name, tensor in group.items()}


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return open_store(tmp_path)


@pytest.fixture
def checkpoints(store: FolderStore) -> Checkpoints:
    return Checkpoints(store, TRAINING, keep=3)


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor.nan_to_num(1e9), other[name].nan_to_num(1e9)), name


def names(store: FolderStore) -> list[str]:
    return store.list(f"{TRAINING}/checkpoints")


def flip_bit(folder: Path, file="ema.safetensors"):
    content = bytearray((folder / file).read_bytes())
    content[len(content) // 2] ^= 0x10
    (folder / file).write_bytes(content)


def edit_manifest(folder: Path, edit):
    manifest = json.loads((folder / MANIFEST).read_text())
    edit(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))


DAMAGES = {
    **{f"flipped bit in {file}": lambda folder, file=file: flip_bit(folder, file) for file in FILES},
    "truncated": lambda folder: (folder / "model.safetensors").write_bytes(
        (folder / "model.safetensors").read_bytes()[:-7]
    ),
    "longer": lambda folder: (folder / "optimizer.safetensors").open("ab").write(b"\0"),
    "missing file": lambda folder: (folder / "optimizer.safetensors").unlink(),
    "missing manifest": lambda folder: (folder / MANIFEST).unlink(),
    "manifest cut": lambda folder: (folder / MANIFEST).write_text((folder / MANIFEST).read_text()[:40]),
    "manifest empty": lambda folder: (folder / MANIFEST).write_text("{}"),
    "manifest no object": lambda folder: (folder / MANIFEST).write_text("[1]"),
    "manifest without a file": lambda folder: edit_manifest(folder, lambda m: m["files"].pop("state.json")),
    "manifest with another step": lambda folder: edit_manifest(folder, lambda m: m.update(step=7)),
    "manifest with a later step": lambda folder: edit_manifest(folder, lambda m: m.update(step=10**6)),
    "folder gone": shutil.rmtree,
}


def test_a_fresh_training_has_the_saved_state_to_the_last_bit(checkpoints):
    one = SmallTraining().advance(5)
    name = checkpoints.save(one.snapshot())
    expected = one.everything()
    found, snapshot = checkpoints.newest()
    other = SmallTraining(seed=1)
    restore(snapshot, other.agent, other.ema, other.optimizer)
    other.step = snapshot.step
    assert found == name
    assert (snapshot.step, snapshot.state["skipped"]) == (5, 2)
    assert_same(other.everything(), expected)
    # and it goes on as the other one does, drawing the same numbers
    torch.manual_seed(3)
    one.advance(4)
    torch.manual_seed(3)
    other.advance(4)
    assert_same(other.everything(), one.everything())


def test_the_averages_are_saved_with_the_buffers_of_the_policy(checkpoints):
    training = SmallTraining().advance(3)
    training.agent.center.fill_(2.5)
    weights = checkpoints.read_weights(checkpoints.save(training.snapshot()), "ema")
    assert (weights["center"] == 2.5).all()
    assert torch.equal(weights["layers.0.weight"], training.ema.average["layers.0.weight"])
    assert not torch.equal(weights["layers.0.weight"], training.agent.layers[0].weight)


def test_a_snapshot_does_not_change_with_the_training_that_goes_on():
    training = SmallTraining().advance(2)
    snapshot = training.snapshot()
    expected = {name: tensor.clone() for name, tensor in training.everything().items()}
    torch.manual_seed(9)
    training.advance(3)
    found = {f"{stem}/{name}": tensor for stem, group in snapshot.tensors.items() for name, tensor in group.items()}
    assert_same(found, expected)


def test_a_restored_snapshot_does_not_change_with_the_training_that_goes_on():
    snapshot = SmallTraining().advance(2).snapshot()
    before = {name: tensor.clone() for name, tensor in snapshot.tensors["optimizer"].items()}
    training = SmallTraining(seed=1)
    restore(snapshot, training.agent, training.ema, training.optimizer)
    training.advance(2)
    assert_same(snapshot.tensors["optimizer"], before)


def test_no_commit_means_a_fresh_start(checkpoints, store):
    assert checkpoints.newest() is None
    folder = store.folder(f"{TRAINING}/checkpoints/00000004-0123abcd")  # a writer was killed before its commit
    (folder / "model.safetensors").write_bytes(b"half")
    assert checkpoints.newest() is None


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_newest_checkpoint_sends_the_training_back_to_the_one_before(checkpoints, store, damage):
    training = SmallTraining().advance(3)
    older = checkpoints.save(training.snapshot())
    newest = checkpoints.save(training.advance(2).snapshot())
    damage(store.root / checkpoints.prefix(newest))
    found, snapshot = checkpoints.newest()
    assert (found, snapshot.step) == (older, 3)


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_only_damaged_checkpoints_refuse_a_fresh_start(checkpoints, store, damage):
    name = checkpoints.save(SmallTraining().advance(3).snapshot())
    damage(store.root / checkpoints.prefix(name))
    with pytest.raises(CheckpointError, match="none can be read") as raised:
        checkpoints.newest()
    assert raised.value.exit_code == 8
    assert name in str(raised.value)


def test_an_unreadable_announcement_alone_refuses_a_fresh_start(checkpoints, store):
    store.folder(TRAINING)
    (store.root / TRAINING / LATEST).write_text("{")
    with pytest.raises(CheckpointError, match=LATEST):
        checkpoints.newest()


def test_a_commit_counts_even_if_its_announcement_was_not_written(checkpoints, store):
    training = SmallTraining().advance(3)
    checkpoints.save(training.snapshot())
    announced = (store.root / TRAINING / LATEST).read_text()
    newest = checkpoints.save(training.advance(2).snapshot())
    (store.root / TRAINING / LATEST).write_text(announced)
    assert checkpoints.newest()[0] == newest


def test_order_is_by_step_and_not_by_name(checkpoints, store):
    training = SmallTraining().advance(1)
    training.step = 99_999_999
    checkpoints.save(training.snapshot())
    training.step = 100_000_000  # a digit more: first by name
    newest = checkpoints.save(training.snapshot())
    assert names(store)[0] == newest
    assert checkpoints.newest()[0] == newest


def test_only_the_newest_are_kept(checkpoints, store):
    training = SmallTraining()
    saved = [checkpoints.save(training.advance().snapshot()) for _ in range(5)]
    assert names(store) == sorted(saved[-3:])
    assert store.read_json(f"{TRAINING}/{LATEST}") == {"checkpoint": saved[-1], "step": 5}


def test_leftovers_of_a_killed_writer_go_with_the_next_commit(checkpoints, store):
    store.folder(f"{TRAINING}/checkpoints/00000004-0123abcd")
    (store.folder(f"{TRAINING}/checkpoints") / "notes.txt").write_text("not ours")
    name = checkpoints.save(SmallTraining().advance().snapshot())
    assert names(store) == [name, "notes.txt"]


def test_damaged_checkpoints_never_push_out_good_ones(checkpoints, store):
    training = SmallTraining()
    good = checkpoints.save(training.advance(1).snapshot())
    for name in [checkpoints.save(training.advance(1).snapshot()) for _ in range(2)]:
        flip_bit(store.root / checkpoints.prefix(name))
    assert checkpoints.newest()[0] == good
    training.step = 1  # went back
    again = checkpoints.save(training.advance(1).snapshot())
    assert names(store) == [good, again]
    assert checkpoints.newest()[0] == again


def test_a_policy_digest_depends_on_the_averages_alone(checkpoints):
    training = SmallTraining().advance(3)
    first = checkpoints.save(training.snapshot())
    second = checkpoints.save(training.snapshot())
    assert first != second
    assert checkpoints.policy_digest(first) == checkpoints.policy_digest(second)
    third = checkpoints.save(training.advance().snapshot())
    assert checkpoints.policy_digest(first) != checkpoints.policy_digest(third)


def test_a_checkpoint_of_another_architecture_is_refused(checkpoints):
    snapshot = SmallTraining().advance(2).snapshot()
    del snapshot.tensors["ema"]["layers.0.weight"]
    other = SmallTraining()
    with pytest.raises(CheckpointError, match="does not fit"):
        restore(snapshot, other.agent, other.ema, other.optimizer)


def test_a_full_disk_is_one_sentence_and_leaves_the_older_checkpoints(checkpoints, store):
    training = SmallTraining().advance(3)
    older = checkpoints.save(training.snapshot())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (256, limits[1]))  # no file may grow beyond: as if the disk were full
    try:
        with pytest.raises(StoreError, match="committed before is intact") as raised:
            checkpoints.save(training.advance().snapshot())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert isinstance(raised.value, DiskFullError)
    assert names(store) == [older]
    assert checkpoints.newest()[0] == older


CHANGES_FILES = {"serialize_file", "open", "mkdir", "fsync", "link", "replace", "unlink", "rmdir"}


def save_and_die(checkpoints: Checkpoints, snapshot, kill_at: int) -> list[int]:
    """In a child process: save, and kill -9 itself before the `kill_at`-th call inside the save.

    Returns:
        The numbers of the calls that change files, if it came to the end; nothing if it was killed.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        calls, found = 0, []

        def count(frame, event, argument):
            nonlocal calls
            calls += event in ("call", "c_call")
            if event == "c_call" and argument.__name__ in CHANGES_FILES:
                found.append(calls)
            if calls == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.setprofile(count)
        checkpoints.save(snapshot)
        sys.setprofile(None)
        os.write(writer, json.dumps(found).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        found = json.loads(pipe.read() or "[]")
    assert os.waitpid(child, 0)[1] == (0 if found else signal.SIGKILL)
    return found


def test_a_writer_killed_anywhere_in_a_save_loses_no_commit(tmp_path):
    """kill -9 before each change of a file: tensors, commit, announcement, removal of the old checkpoint."""
    training = SmallTraining()
    snapshots = [training.advance().snapshot() for _ in range(3)]

    def saved_once(name):
        checkpoints = Checkpoints(open_store(tmp_path / name), TRAINING, keep=1)
        return checkpoints, checkpoints.save(snapshots[0])

    changes = save_and_die(saved_once("whole")[0], snapshots[1], kill_at=-1)
    assert len(changes) > 20
    seen = set()
    for kill_at in changes:
        checkpoints, first = saved_once(str(kill_at))
        store = open_store(tmp_path / str(kill_at))
        assert save_and_die(checkpoints, snapshots[1], kill_at) == []
        found, snapshot = Checkpoints(store, TRAINING).newest()
        assert snapshot.step == (1 if found == first else 2)
        seen.add(snapshot.step)
        for name in names(store):
            if (store.root / TRAINING / "checkpoints" / name / MANIFEST).exists():
                Checkpoints(store, TRAINING).read(name)  # committed means whole, also while old ones are removed
        last = Checkpoints(store, TRAINING, keep=1).save(snapshots[2])
        assert names(store) == [last]
    assert seen == {1, 2}
