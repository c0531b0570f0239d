"""The fault tests are tests: with each protection taken out, the one that guards it fails."""

import contextlib

import pytest
import torch

from roboimi.errors import FencedError, StoreError
from roboimi.storage.store import open_store
from roboimi.vla.training import checkpoint as checkpoint_module
from roboimi.vla.training import latest as latest_module
from roboimi.vla.training import manifest as manifest_module
from roboimi.vla.training import reader as reader_module
from roboimi.vla.training import snapshot as snapshot_module
from roboimi.vla.training.checkpoint import Checkpoints
from roboimi.vla.training.lease import Lease
from roboimi.vla.training.manifest import MANIFEST
from roboimi.vla.training.reader import CheckpointReader
from tests.faults.harness import die_at, fork
from tests.training.test_checkpoint import TRAINING, SmallTraining


@pytest.fixture
def store(tmp_path):
    return open_store(tmp_path)


# What each protection promises, as the campaigns test it: raises AssertionError where it is broken.


def latest_names_a_commit(tmp_path):
    """kill -9 before every sixth change of a save: what LATEST names is there, whole."""
    snapshots = [SmallTraining().advance(step).snapshot() for step in (1, 2)]
    for number in range(1, 400, 6):
        store = open_store(tmp_path / f"latest-{number}")
        Checkpoints(store, TRAINING).save(snapshots[0])

        def work(report, store=store, number=number):
            die_at(number, report)
            Checkpoints(store, TRAINING).save(snapshots[1])

        code = fork(work).end()
        reader = CheckpointReader(store, TRAINING)
        for name in reader.announced():
            assert reader.manifest(name) is not None, "LATEST names what was never committed"
        if code == 0:
            return


def a_flipped_bit_is_found(tmp_path):
    store = open_store(tmp_path / "bits")
    writer = Checkpoints(store, TRAINING)
    older = writer.save(SmallTraining().advance(1).snapshot())
    newest = writer.save(SmallTraining().advance(2).snapshot())
    path = store.root / writer.prefix(newest) / "ema.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # in the weights: no format would notice
    assert CheckpointReader(store, TRAINING).newest()[0] == older, "damage was loaded"


def a_replaced_writer_is_fenced(tmp_path):
    store = open_store(tmp_path / "fence")
    old, new = (Checkpoints(store, TRAINING, epoch=epoch) for epoch in (1, 2))
    name = old.save(SmallTraining().advance(1).snapshot())
    new.take_over((name, 1))
    with contextlib.suppress(FencedError):
        old.save(SmallTraining().advance(9).snapshot())
    assert store.read_json(f"{TRAINING}/LATEST.json")["epoch"] == 2, "LATEST went back"


def two_writers_have_folders_of_their_own(tmp_path):
    """Both at the same step and epoch, as two processes of one run can be."""
    store = open_store(tmp_path / "nonce")
    one, other = SmallTraining(seed=1).advance(3), SmallTraining(seed=2).advance(3)
    spooled = [Checkpoints(store, TRAINING, epoch=1).spool(training.snapshot()) for training in (one, other)]
    writer = Checkpoints(store, TRAINING, epoch=1)
    try:
        for item in spooled:
            writer.commit(item)
    except StoreError as error:
        raise AssertionError("one writer's commit was taken for the other's") from error
    reader = CheckpointReader(store, TRAINING)
    for item, training in zip(spooled, (one, other), strict=True):
        found = reader.read(item.name).tensors["model"]["layers.0.weight"]
        assert torch.equal(found, training.agent.layers[0].weight), "one writer wrote over the other's checkpoint"


def a_lost_answer_is_no_defeat(tmp_path):
    """The swap took place and its answer was lost: the holder is still the holder."""
    from roboimi.vla.training.lease import acquire

    store = open_store(tmp_path / "lost")
    lease = acquire(store, TRAINING, ttl_s=1e9)
    real = store.replace

    def lost(key, document, version):
        real(key, document, version)
        return real(key, document, version)

    store.replace = lost
    try:
        lease._swap(lease._held.document | {"renewals": 1})
    except FencedError as error:
        raise AssertionError("a false defeat") from error


def a_snapshot_is_of_its_step(tmp_path):
    """It is written while the training goes on."""
    training = SmallTraining().advance(2)
    snapshot = training.snapshot()
    expected = {name: tensor.clone() for name, tensor in training.agent.state_dict().items()}
    training.advance(3)
    store = open_store(tmp_path / "copy")
    name = Checkpoints(store, TRAINING).save(snapshot)
    found = CheckpointReader(store, TRAINING).read(name).tensors["model"]
    assert all(torch.equal(found[key], expected[key]) for key in expected), "a later step leaked into the checkpoint"


# The same protections taken out.


def latest_first(patch):
    real = Checkpoints.commit

    def commit(self, spooled):
        self._latest.point_at(spooled.name, spooled.step, self._epoch)
        real(self, spooled)

    patch.setattr(Checkpoints, "commit", commit)


def no_hash(patch):
    patch.setattr(reader_module, "verified_bytes", lambda path, entry: path.read_bytes())


def no_fencing(patch):
    patch.setattr(latest_module, "_epoch", lambda document: 0)


def no_nonce(patch):
    patch.setattr(checkpoint_module.secrets, "token_hex", lambda size: "0" * 2 * size)


def no_nonce_check(patch):
    def swap(self, document):
        swapped = self._store.replace(f"{self._training}/LEASE.json", document, self._held.version)
        if swapped is None:
            raise FencedError("Taken by another writer: nothing to do here.")
        self._held = swapped

    patch.setattr(Lease, "_swap", swap)


def no_copy(patch):
    patch.setattr(
        snapshot_module,
        "host_copy",
        lambda tensors, buffers: {name: tensor.detach() for name, tensor in tensors.items()},
    )


PROTECTIONS = {
    latest_first: latest_names_a_commit,
    no_hash: a_flipped_bit_is_found,
    no_fencing: a_replaced_writer_is_fenced,
    no_nonce: two_writers_have_folders_of_their_own,
    no_nonce_check: a_lost_answer_is_no_defeat,
    no_copy: a_snapshot_is_of_its_step,
}


@pytest.mark.parametrize("promise", PROTECTIONS.values(), ids=lambda promise: promise.__name__)
def test_the_promise_holds(promise, tmp_path):
    promise(tmp_path)


@pytest.mark.parametrize("mutant", PROTECTIONS, ids=lambda mutant: mutant.__name__)
def test_a_broken_build_is_found(mutant, tmp_path, monkeypatch):
    mutant(monkeypatch)
    with pytest.raises(AssertionError):
        PROTECTIONS[mutant](tmp_path)


def test_a_manifest_without_its_digest_check_loads_a_wrong_epoch(store, monkeypatch):
    """The digest of the manifest is what finds a flipped bit in it."""
    import json

    writer = Checkpoints(store, TRAINING, epoch=1)
    name = writer.save(SmallTraining().advance(1).snapshot())
    path = store.root / writer.prefix(name) / MANIFEST
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"epoch": 3}))
    assert not CheckpointReader(store, TRAINING).commits()[name].readable
    monkeypatch.setattr(manifest_module, "sha256_json", lambda document: manifest["digest"])
    assert CheckpointReader(store, TRAINING).commits()[name].epoch == 3
