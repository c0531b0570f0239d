"""Damage to the newest checkpoint is always found, and the one before is loaded."""

import json
import random
import shutil

import pytest

from roboimi.errors import CheckpointError
from roboimi.storage.store import open_store
from roboimi.vla.training.checkpoint import Checkpoints
from roboimi.vla.training.manifest import MANIFEST, new_manifest
from tests.faults.harness import fork_training, the_training

KINDS = ("bit", "truncated", "missing", "extra file", "extra bytes", "swapped", "zeroed", "another checkpoint's file")


def damage(folder, older, kind, numbers):
    """Do it; gives what was done, or None where it changed nothing."""
    files = sorted(path for path in folder.iterdir())
    path = numbers.choice(files)
    content = bytearray(path.read_bytes())
    before = {file.name: file.read_bytes() for file in files}
    if kind == "bit":
        content[numbers.randrange(len(content))] ^= 1 << numbers.randrange(8)
        path.write_bytes(content)
    elif kind == "truncated":
        path.write_bytes(content[: numbers.randrange(len(content))])
    elif kind == "missing":
        path.unlink()
    elif kind == "extra file":
        (folder / numbers.choice(["model.safetensors.bak", "extra.json", "z.safetensors"])).write_bytes(b"x")
    elif kind == "extra bytes":
        path.write_bytes(bytes(content) + numbers.randbytes(numbers.randrange(1, 9)))
    elif kind == "swapped":
        other = numbers.choice([file for file in files if file != path])
        path.write_bytes(other.read_bytes())
        other.write_bytes(content)
    elif kind == "zeroed":
        start = numbers.randrange(len(content))
        length = min(len(content) - start, numbers.randrange(1, 4096))
        content[start : start + length] = bytes(length)
        path.write_bytes(content)
    else:
        path.write_bytes((older / path.name).read_bytes())
    after = {file.name: file.read_bytes() for file in folder.iterdir()}
    return None if after == before else f"{kind} in {path.name}"


@pytest.fixture(scope="module")
def trained(make_run, tmp_path_factory):
    """A training with two checkpoints: the store's folder, and both names."""
    root = tmp_path_factory.mktemp("trained")
    child = fork_training(make_run("train.keep_checkpoints=50"), str(root))
    assert child.end() == 0
    store = open_store(root)
    newest, older = sorted(store.list(f"{the_training(store)}/checkpoints"), reverse=True)[:2]
    return root, newest, older


@pytest.mark.parametrize("trials", [80, pytest.param(1000, marks=pytest.mark.faults)])
def test_every_damage_is_found_and_the_one_before_is_loaded(trained, tmp_path, note, trials):
    root, newest, older = trained
    numbers = random.Random(trials)
    store = open_store(root)
    folder = root / the_training(store) / "checkpoints"
    shutil.copytree(folder / newest, tmp_path / "whole")
    done = dict.fromkeys(KINDS, 0)
    trial = 0
    while trial < trials:
        kind = KINDS[trial % len(KINDS)]
        if damage(folder / newest, folder / older, kind, numbers):
            found, snapshot = Checkpoints(store, the_training(store)).newest()
            assert (found, snapshot.step) == (older, int(older.split("-")[0])), kind
            done[kind] += 1
            trial += 1
        shutil.rmtree(folder / newest)
        shutil.copytree(tmp_path / "whole", folder / newest)
    assert Checkpoints(store, the_training(store)).newest()[0] == newest
    note(n=trials, found=trials, wrong_loads=0, kinds=done)


def test_damage_of_everything_is_no_fresh_start(trained, tmp_path):
    root, *_ = trained
    shutil.copytree(root, tmp_path / "copy")
    store = open_store(tmp_path / "copy")
    for path in (tmp_path / "copy").rglob("model.safetensors"):
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="none can be read"):
        Checkpoints(store, the_training(store)).newest()


def test_a_manifest_that_vouches_for_damage_needs_its_own_digest(trained, tmp_path):
    """Somebody who edits a manifest by hand is found out, unless the digest is made anew too, which is no damage."""
    root, newest, older = trained
    shutil.copytree(root, tmp_path / "copy")
    store = open_store(tmp_path / "copy")
    path = tmp_path / "copy" / the_training(store) / "checkpoints" / newest / MANIFEST
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"epoch": manifest["epoch"] + 1}))
    assert Checkpoints(store, the_training(store)).newest()[0] == older
    path.write_text(json.dumps(new_manifest(newest, manifest["step"], manifest["epoch"] + 1, manifest["files"])))
    assert Checkpoints(store, the_training(store)).newest()[0] == newest
