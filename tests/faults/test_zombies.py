"""Writers that wake up after they were replaced, many writers at once, and campaigns that share an arm."""

import os
import random
import signal
import threading

import pytest

from roboimi.errors import FencedError, StoreUnavailableError
from roboimi.storage import folder_store
from roboimi.storage.store import open_store
from roboimi.vla.training.checkpoint import Checkpoints
from roboimi.vla.training.lease import acquire
from roboimi.vla.training.reader import CheckpointReader
from tests.faults.harness import CHANGES, fork, fork_training, stage_of, the_training
from tests.training.test_checkpoint import SmallTraining

TRAINING = "trainings/abc"


def stop_at(number):
    """Stop this process (as SIGSTOP from outside would) before the `number`-th change inside of a save."""
    import itertools
    import sys

    counter = itertools.count(1)

    def count(frame, event, argument):
        inside = event == "c_call" and argument.__name__ in CHANGES and stage_of(frame) != "training"
        if inside and next(counter) == number:
            os.kill(os.getpid(), signal.SIGSTOP)

    sys.setprofile(count)
    return counter


def latest_of(store):
    document = store.read_json(f"{TRAINING}/LATEST.json")
    return (document["epoch"], document["step"])


def zombie(uri, number, snapshots):
    """Save twice as epoch 1, stopped somewhere on the way."""

    def work(report):
        writer = Checkpoints(open_store(uri), TRAINING, epoch=1)
        writer.save(snapshots[0])
        stop_at(number)
        for snapshot in snapshots[1:]:
            report({"saved": writer.save(snapshot)})

    return fork(work)


def interleave(uri, number, snapshots, later):
    """SIGSTOP the old writer, start the new one, SIGCONT.

    Returns:
        The old one's exit code, and whether it was stopped while it held a document's lock: nobody can replace that
        document then, which the new writer says instead of waiting for ever.
    """
    child = zombie(uri, number, snapshots)
    _, status = os.waitpid(child.pid, os.WUNTRACED)
    store = open_store(uri)
    assert os.WIFSTOPPED(status)
    new = Checkpoints(store, TRAINING, epoch=2)
    found, snapshot = new.newest()
    seen, saved, held = [latest_of(store)], [], False
    try:
        new.take_over((found, snapshot.step))
    except StoreUnavailableError:
        held = True
    else:
        saved.append(new.save(later[0]))
        seen.append(latest_of(store))
    child.send(signal.SIGCONT)
    # The new one goes on while the old one finds out.
    if held:
        new.take_over((found, snapshot.step))
    saved.append(new.save(later[1]))
    seen.append(latest_of(store))
    code = child.end()
    seen.append(latest_of(store))
    assert seen == sorted(seen), "LATEST went back"
    assert seen[-1] == (2, later[1].step)
    reader = CheckpointReader(store, TRAINING)
    for name in saved:
        reader.verify(name)
    assert reader.newest()[0] == saved[-1]
    return code, held


def changes_in_two_saves(tmp_path, snapshots):
    def work(report):
        writer = Checkpoints(open_store(tmp_path / "count"), TRAINING, epoch=1)
        writer.save(snapshots[0])
        counter = stop_at(-1)
        for snapshot in snapshots[1:]:
            writer.save(snapshot)
        report({"calls": next(counter)})

    child = fork(work)
    assert child.end() == 0, child.said
    return child.last("calls")


@pytest.mark.parametrize("trials", [6, pytest.param(100, marks=[pytest.mark.faults, pytest.mark.timeout(1800)])])
def test_a_writer_that_wakes_up_after_it_was_replaced_is_fenced(tmp_path, monkeypatch, note, trials):
    training = SmallTraining()
    snapshots = [training.advance().snapshot() for _ in range(3)]
    later = [training.advance().snapshot() for _ in range(2)]
    calls = changes_in_two_saves(tmp_path, snapshots)
    # Before the last collection: what comes after it needs no fence any more.
    numbers = random.Random(trials).choices(range(1, int(0.9 * calls)), k=trials)
    monkeypatch.setattr(folder_store, "SECONDS_TO_LOCK", 0.3)
    ended = [interleave(str(tmp_path / str(trial)), number, snapshots, later) for trial, number in enumerate(numbers)]
    codes, held = [code for code, _ in ended], sum(held for _, held in ended)
    note(n=trials, latest_went_back=0, fenced=codes.count(FencedError.exit_code), stopped_with_the_lock=held)
    assert codes == [FencedError.exit_code] * trials


@pytest.mark.parametrize("rounds", [1, pytest.param(20, marks=[pytest.mark.faults, pytest.mark.timeout(1800)])])
def test_of_sixteen_writers_at_once_the_last_lease_wins(tmp_path, note, rounds):
    """Each takes the lease by force and saves; LATEST ends with the highest epoch, and only goes up meanwhile."""
    snapshots = [SmallTraining(seed).advance(seed + 1).snapshot() for seed in range(16)]
    fenced = 0
    for turn in range(rounds):
        store = open_store(tmp_path / str(turn))
        ended, seen = [], []
        barrier = threading.Barrier(16)

        def write(index, store=store, ended=ended, barrier=barrier):
            own = open_store(store.root)
            barrier.wait()
            lease = acquire(own, TRAINING, when_held="supersede", ttl_s=1e9)
            writer = Checkpoints(own, TRAINING, epoch=lease.epoch)
            try:
                for _ in range(3):
                    writer.save(snapshots[index])
                ended.append((lease.epoch, "saved"))
            except FencedError:
                ended.append((lease.epoch, "fenced"))

        threads = [threading.Thread(target=write, args=(index,)) for index in range(16)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            if document := store.read_json(f"{TRAINING}/LATEST.json"):
                seen.append(document["epoch"])
        assert seen == sorted(seen)
        assert sorted(epoch for epoch, _ in ended) == list(range(1, 17))
        assert (16, "saved") in ended
        assert store.read_json(f"{TRAINING}/LATEST.json")["epoch"] == 16
        reader = CheckpointReader(store, TRAINING)
        assert "-e16-" in reader.newest()[0]
        fenced += sum(how == "fenced" for _, how in ended)
    note(n=16 * rounds, latest_went_back=0, fenced=fenced)


def sharing(run, uri):
    """Two campaigns that share an arm, started together: how both ended."""
    children = [fork_training(run, uri, claimant=f"run-{index}/arm") for index in range(2)]
    assert [child.end() for child in children] == [0, 0], [child.said[-1] for child in children]
    results = [child.last("result") for child in children]
    assert results[0] == results[1]
    assert results[0]["attempts"] == 1
    return sorted(len([line for line in child.said if "step" in line and line["step"] > 0]) > 0 for child in children)


@pytest.mark.parametrize("trials", [1, pytest.param(20, marks=[pytest.mark.faults, pytest.mark.timeout(1800)])])
def test_two_campaigns_that_share_an_arm_train_it_once(make_run, tmp_path, note, trials):
    for trial in range(trials):
        sharing(make_run(), str(tmp_path / str(trial)))
        store = open_store(tmp_path / str(trial))
        assert len(store.read_json(f"{the_training(store)}/TRAINING.json")["attempts"]) == 1
    note(n=trials, trained_once=trials, killed=0)


@pytest.mark.parametrize("trials", [1, pytest.param(20, marks=[pytest.mark.faults, pytest.mark.timeout(1800)])])
def test_so_do_two_whose_store_is_minio(make_run, minio_server, s3_environment, tmp_path, monkeypatch, note, trials):
    """With caches of their own, as on two machines."""
    for trial in range(trials):
        uri = f"s3://{minio_server.new_bucket()}/store"
        children = []
        for index in range(2):
            monkeypatch.setenv("ROBOIMI_CACHE", str(tmp_path / f"{trial}-{index}"))
            children.append(fork_training(make_run(), uri, claimant=f"run-{index}/arm"))
        assert [child.end() for child in children] == [0, 0], [child.said[-1] for child in children]
        assert children[0].last("result") == children[1].last("result")
        assert children[0].last("result")["attempts"] == 1
    note(n=trials, trained_once=trials, killed=0)
