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

from roboimi.errors import CheckpointError, DiskFullError, FencedError, StoreError
from roboimi.storage.folder_store import FolderStore
from roboimi.storage.store import open_store
from roboimi.vla.training.checkpoint import Checkpoints
from roboimi.vla.training.ema import EMA
from roboimi.vla.training.latest import LATEST
from roboimi.vla.training.manifest import FILES, MANIFEST
from roboimi.vla.training.optim import make_optimizer
from roboimi.vla.training.snapshot import HostBuffers, restore, take_snapshot

TRAINING = "trainings/abc"
LINES = '{"kind": "train", "step": 1, "loss": 0.5}\n'


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
        return take_snapshot(self.step, self.agent, self.ema, self.optimizer, {"skipped": 2}, metrics=LINES)

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


def swap(one: Path, other: Path):
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)


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
    "manifest with a later epoch": lambda folder: edit_manifest(folder, lambda m: m.update(epoch=7)),
    "manifest without its digest": lambda folder: edit_manifest(folder, lambda m: m.pop("digest")),
    "a file too many": lambda folder: (folder / "weights.safetensors").write_bytes(b"?"),
    "files swapped": lambda folder: swap(folder / "model.safetensors", folder / "ema.safetensors"),
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


def test_a_checkpoint_under_the_name_of_another_is_damaged(checkpoints, store):
    training = SmallTraining().advance(3)
    older = checkpoints.save(training.snapshot())
    newest = checkpoints.save(training.advance(2).snapshot())
    folders = [store.root / checkpoints.prefix(name) for name in (older, newest)]
    folders[0].rename(store.root / "aside")
    folders[1].rename(folders[0])
    (store.root / "aside").rename(folders[1])
    with pytest.raises(CheckpointError, match="belongs to another checkpoint"):
        checkpoints.newest()


def test_checkpoints_from_before_manifests_had_a_digest_are_read(checkpoints, store):
    name = checkpoints.save(SmallTraining().advance(3).snapshot())
    old = store.root / TRAINING / "checkpoints" / "00000003-0123abcd"
    (store.root / checkpoints.prefix(name)).rename(old)
    (old / "metrics.jsonl").unlink()
    manifest = json.loads((old / MANIFEST).read_text())
    files = {name: entry for name, entry in manifest["files"].items() if name != "metrics.jsonl"}
    (old / MANIFEST).write_text(json.dumps({"schema": "roboimi.checkpoint/1", "step": 3, "files": files}))
    (store.root / TRAINING / LATEST).write_text(json.dumps({"checkpoint": old.name, "step": 3}))
    found, snapshot = checkpoints.newest()
    assert (found, snapshot.step, snapshot.metrics) == (old.name, 3, None)
    later = Checkpoints(store, TRAINING, epoch=1)
    later.take_over((found, 3))
    assert later.save(SmallTraining().advance(4).snapshot()) in names(store)


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
    assert store.read_json(f"{TRAINING}/{LATEST}") == {"checkpoint": saved[-1], "step": 5, "epoch": 0}


def test_unfinished_folders_go_when_their_writer_is_dead_or_they_are_old(store, monkeypatch):
    """A concurrent writer's fresh folder must survive."""
    mine, dead, alive = (f"00000004-e{epoch}-0123abcd" for epoch in (7, 6, 5))
    for name in (mine, dead, alive):
        store.folder(f"{TRAINING}/checkpoints/{name}")
    (store.folder(f"{TRAINING}/checkpoints") / "notes.txt").write_text("not ours")
    writer = Checkpoints(store, TRAINING, epoch=7, abandoned=6)
    saved = [writer.save(SmallTraining().advance().snapshot()) for _ in range(2)]
    assert names(store) == sorted([*saved, alive, "notes.txt"])
    monkeypatch.setattr("roboimi.vla.training.retention.UNCOMMITTED_AFTER_S", 0.0)
    writer.collect()
    assert names(store) == sorted([*saved, "notes.txt"])


def test_what_was_never_verified_pushes_nothing_out(store):
    """The older ones go only when enough newer ones are known to be good."""
    training = SmallTraining()
    before = [Checkpoints(store, TRAINING, epoch=1).save(training.advance().snapshot()) for _ in range(3)]
    writer = Checkpoints(store, TRAINING, keep=2, epoch=2)
    writer.save(training.advance().snapshot())
    assert set(before) <= set(names(store))
    last = writer.save(training.advance().snapshot())
    assert len(names(store)) == 2
    assert last in names(store)


def test_latest_never_goes_back_to_a_lower_epoch(store):
    training = SmallTraining().advance(3)
    old, new = (Checkpoints(store, TRAINING, epoch=epoch) for epoch in (1, 2))
    name = old.save(training.snapshot())
    new.take_over((name, 3))
    later = training.advance(5).snapshot()
    with pytest.raises(FencedError, match="epoch 2, this one has 1") as raised:
        old.save(later)
    assert (raised.value.exit_code, raised.value.retryable) == (12, False)
    assert store.read_json(f"{TRAINING}/{LATEST}") == {"checkpoint": name, "step": 3, "epoch": 2}
    # and what the old one committed, though later, does not win over the new one's next checkpoint
    going_on = new.save(SmallTraining().advance(4).snapshot())
    assert new.newest()[0] == going_on


def test_an_unreadable_latest_is_written_anew(store):
    training = SmallTraining().advance(3)
    writer = Checkpoints(store, TRAINING, epoch=1)
    writer.save(training.snapshot())
    (store.root / TRAINING / LATEST).write_text("{")
    name = writer.save(training.advance().snapshot())
    assert store.read_json(f"{TRAINING}/{LATEST}")["checkpoint"] == name


def test_a_lost_answer_is_no_defeat(store, monkeypatch):
    """The write took place, its answer did not arrive: the repeated announcement finds its own document."""
    writer = Checkpoints(store, TRAINING, epoch=1)
    writer.save(SmallTraining().advance().snapshot())
    real = store.replace

    def lost(key, document, version):
        real(key, document, version)
        return real(key, document, version)

    monkeypatch.setattr(store, "replace", lost)
    name = writer.save(SmallTraining().advance(2).snapshot())
    assert store.read_json(f"{TRAINING}/{LATEST}")["checkpoint"] == name


def test_what_was_spooled_is_found_by_the_next_process(store):
    training = SmallTraining().advance(3)
    first = Checkpoints(store, TRAINING, epoch=1)
    first.save(training.snapshot())
    spooled = first.spool(training.advance(2).snapshot())
    older = first.spool(SmallTraining().advance(4).snapshot())
    again = Checkpoints(store, TRAINING, epoch=2)
    assert again.recover() == spooled.name
    assert again.newest()[1].step == 5
    assert older.name not in names(store)
    assert again.recover() is None
    assert store.list(f"{TRAINING}/spool") == []


def test_a_damaged_spool_is_left_alone(store):
    training = SmallTraining().advance(3)
    writer = Checkpoints(store, TRAINING, epoch=1)
    name = writer.save(training.snapshot())
    spooled = writer.spool(training.advance(2).snapshot())
    flip_bit(store.root / writer.prefix(spooled.name))
    assert Checkpoints(store, TRAINING, epoch=2).recover() is None
    assert Checkpoints(store, TRAINING).newest()[0] == name


def test_snapshots_in_used_memory_are_the_same():
    """The memory of a snapshot that was written is used again, whatever was in it."""
    buffers = HostBuffers()
    training = SmallTraining().advance(2)
    first = take_snapshot(2, training.agent, training.ema, training.optimizer, {}, buffers=buffers)
    buffers.give_back(first)
    training.advance(3)
    expected = training.everything()
    second = take_snapshot(5, training.agent, training.ema, training.optimizer, {}, buffers=buffers)
    found = {f"{stem}/{name}": tensor for stem, group in second.tensors.items() for name, tensor in group.items()}
    assert_same(found, expected)
    assert second.tensors["model"]["center"].data_ptr() == first.tensors["model"]["center"].data_ptr()


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
        last = Checkpoints(store, TRAINING, keep=1, epoch=2, abandoned=0).save(snapshots[2])
        assert names(store) == [last]
    assert seen == {1, 2}
