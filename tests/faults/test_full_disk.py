"""A disk that fills up at any write: the training goes on, says so, and nothing that was there is lost."""

import ctypes
import os
import resource
import shutil
import time
from pathlib import Path

import pytest

from roboimi.storage.store import open_store
from roboimi.vla.training.reader import CheckpointReader
from tests.faults.harness import final_state, fork_training, the_training

STEPS = "train.steps=40"
CAMPAIGN = [pytest.mark.faults, pytest.mark.timeout(1800)]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 8 MB of its own."""
    libc = ctypes.CDLL(None, use_errno=True)
    folder = tmp_path / "disk"
    folder.mkdir()
    if libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, b"size=8m") != 0:
        pytest.skip(f"mounting is not permitted here ({os.strerror(ctypes.get_errno())})")
    yield folder
    libc.umount2(os.fsencode(folder), 2)


def fill(folder: Path, leave: int) -> Path:
    """Take all room of a file system but `leave` bytes."""
    ballast = folder / "ballast"
    free = shutil.disk_usage(folder).free
    ballast.write_bytes(bytes(max(0, free - leave)))
    return ballast


@pytest.mark.parametrize("leave", [0, *(pytest.param(size, marks=CAMPAIGN) for size in range(20_000, 500_000, 20_000))])
def test_training_goes_on_without_room_and_saves_when_there_is_some(make_run, unkilled, small_disk, note, leave):
    """The disk is full from step 10 to step 25, with room for nothing, or for a part of a checkpoint."""
    store = open_store(small_disk / "store")

    def before(report):
        def see(step):
            if step == 10:
                # Not before there is something to lose.
                while not store.read_json(f"{the_training(store)}/LATEST.json"):
                    time.sleep(0.01)  # the writer is a thread of this process
                fill(small_disk, leave)
            if step == 25:
                (small_disk / "ballast").unlink()

        return see

    child = fork_training(make_run(STEPS), str(small_disk / "store"), before=before)
    assert child.end() == 0, child.said[-1]
    result = child.last("result")
    assert final_state(store, result) == unkilled(STEPS)
    alarms = [line for line in metrics(store, result) if line["kind"] == "alarm"]
    note(leave=leave, alarms=len(alarms), crashed=0, lost_lines=0)
    if leave == 0:
        assert "training goes on" in alarms[0]["what"]


def metrics(store, result):
    import json

    return [json.loads(line) for line in (store.root / result["training"] / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "sizes", [(0, 2_000, 60_000), pytest.param(tuple(range(0, 400_000, 10_000)), marks=pytest.mark.faults)]
)
def test_a_disk_that_stays_full_ends_with_its_class_and_keeps_what_was_there(make_run, tmp_path, note, sizes):
    """No file may grow beyond so many bytes, from step 10 on: each of them is another write that fails."""
    codes = []
    for size in sizes:
        uri = str(tmp_path / str(size))
        store = open_store(uri)

        def before(report, store=store, size=size):
            def see(step):
                if step == 10:
                    while not store.read_json(f"{the_training(store)}/LATEST.json"):
                        time.sleep(0.01)
                    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

            return see

        child = fork_training(make_run("train.steps=20"), uri, before=before)
        codes.append(child.end())
        assert codes[-1] in {0, 7}, child.said[-1]
        assert child.last("step") == 20  # it trained on to its end
        reader = CheckpointReader(store, the_training(store))
        name, _ = reader.newest()
        reader.verify(name)
        again = fork_training(make_run("train.steps=20"), uri)
        assert again.end() == 0
    note(n=len(sizes), crashed=0, lost_commits=0, codes=sorted(set(codes)))
    assert 7 in codes
