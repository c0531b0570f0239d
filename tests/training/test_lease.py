"""One writer at a time: the dead are no obstacle, the living are waited for, and nobody's clock is believed."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import asdict, replace

import pytest

from roboimi.errors import FencedError, HeldByAnotherError
from roboimi.storage.store import open_store
from roboimi.vla.training import lease as lease_module
from roboimi.vla.training.lease import FILE, Holder, acquire, read_holder

TRAINING = "trainings/abc"

HOLD = """
import sys, time
from roboimi.storage.store import open_store
from roboimi.vla.training.lease import acquire
with acquire(open_store(sys.argv[1]), "trainings/abc", claimant=sys.argv[2]):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def store(tmp_path):
    return open_store(tmp_path)


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path), "run-1/arm"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def hold_from_elsewhere(store, **fields):
    """A lease of a process of which nothing can be known from here."""
    elsewhere = replace(Holder.this_process(), host="elsewhere", boot="another", pid=7, **fields)
    document = {"epoch": 4, "renewals": 0, "ttl_s": 0.3, "holder": asdict(elsewhere)}
    return store.create(f"{TRAINING}/{FILE}", document)


def test_a_live_holder_is_named(store, holder):
    with pytest.raises(HeldByAnotherError, match=rf"process {holder.pid} on {socket.gethostname()} for run-1/arm"):
        acquire(store, TRAINING, when_held="fail")
    assert read_holder(store, TRAINING).pid == holder.pid


def test_a_killed_holder_is_replaced_at_once_and_its_epoch_is_known_to_be_over(store, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    lease = acquire(store, TRAINING, when_held="fail")
    assert (lease.epoch, lease.abandoned) == (2, 1)


def test_a_zombie_process_is_dead(store, holder):
    """Killed, and not yet waited for by its parent: it still has its number."""
    holder.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)
    assert acquire(store, TRAINING, when_held="fail").epoch == 2


def test_a_number_that_came_to_mean_another_process_is_no_holder(store):
    me = Holder.this_process()
    assert not me.dead
    assert replace(me, started=me.started - 1).dead
    assert not replace(me, boot="another", started=0).dead  # nothing is known of another machine
    assert not replace(me, namespace="pid:[1]", started=0).dead  # nor of another container


def test_it_is_given_back_at_the_end_also_after_an_error(store):
    with pytest.raises(RuntimeError), acquire(store, TRAINING):
        raise RuntimeError
    assert read_holder(store, TRAINING) is None
    lease = acquire(store, TRAINING, when_held="fail")
    assert (lease.epoch, lease.abandoned) == (2, 1)


def test_the_same_process_cannot_hold_it_twice(store):
    with acquire(store, TRAINING, claimant="a"), pytest.raises(HeldByAnotherError):
        acquire(store, TRAINING, claimant="a", when_held="fail")


def test_a_retry_of_the_same_run_takes_over_at_once(store):
    hold_from_elsewhere(store, claimant="run-1/arm")
    with pytest.raises(HeldByAnotherError):
        acquire(store, TRAINING, claimant="run-2/arm", when_held="fail")
    lease = acquire(store, TRAINING, claimant="run-1/arm", when_held="fail")
    assert (lease.epoch, lease.abandoned) == (5, None)  # what the other one is writing may still be written


def test_nothing_to_work_for_is_nobodys_retry(store):
    hold_from_elsewhere(store, claimant="")
    with pytest.raises(HeldByAnotherError):
        acquire(store, TRAINING, claimant="", when_held="fail")


def test_it_can_be_taken_by_force(store, holder):
    with acquire(store, TRAINING, when_held="supersede") as lease:
        assert lease.epoch == 2
    holder.stdin.write("\n")


def test_an_unchanged_lease_expires(store):
    hold_from_elsewhere(store, claimant="run-1/arm")
    said = []
    lease = acquire(store, TRAINING, waiting=said.append, ttl_s=0.3)
    assert lease.epoch == 5
    assert "process 7 on elsewhere for run-1/arm" in said[0]


def test_a_process_that_is_seen_to_run_keeps_its_lease_and_a_stopped_one_does_not(store, holder):
    """On a machine that is too busy for renewals a lease must not go from hand to hand."""
    key, looks = f"{TRAINING}/{FILE}", []
    found = store.read_versioned(key)
    store.replace(key, found.document | {"ttl_s": 0.1}, found.version)  # the next renewal is seconds away
    assert acquire(store, TRAINING, waiting=looks.append, finished=lambda: len(looks) > 15, ttl_s=0.1) is None
    holder.send_signal(signal.SIGSTOP)
    assert acquire(store, TRAINING, ttl_s=0.1).epoch == 2
    holder.send_signal(signal.SIGCONT)


def test_a_renewed_lease_does_not_expire(store):
    """The challenger watches for several times the time to live, and finds the training finished in the end."""
    held = hold_from_elsewhere(store, claimant="")
    renewals = 0

    def renew(sentence):
        nonlocal held, renewals
        renewals += 1
        held = store.replace(f"{TRAINING}/{FILE}", held.document | {"renewals": renewals}, held.version)

    assert acquire(store, TRAINING, waiting=renew, finished=lambda: renewals >= 15, ttl_s=0.3) is None


def test_the_holder_renews_and_finds_out_when_it_was_replaced(store, monkeypatch):
    renewed, replaced = threading.Event(), threading.Event()
    real = store.replace

    def watch(key, document, version):
        result = real(key, document, version)
        (renewed if result else replaced).set()
        return result

    monkeypatch.setattr(store, "replace", watch)
    with acquire(store, TRAINING, ttl_s=0.1) as lease:
        assert renewed.wait(10)
        lease.check()
        monkeypatch.setattr(lease_module, "RENEWALS_PER_TTL", 1e-9)
        other = acquire(store, TRAINING, when_held="supersede", ttl_s=1e9)
        assert other.epoch == 2
        assert replaced.wait(10)
        lease._thread.join(10)
        with pytest.raises(FencedError, match="epoch 2, this one has 1"):
            lease.check()
    assert store.read_json(f"{TRAINING}/{FILE}")["epoch"] == 2  # and it does not give back what is not its own
    assert read_holder(store, TRAINING) is not None


def test_a_lost_answer_is_no_defeat(store, monkeypatch):
    real = store.replace

    def lost(key, document, version):
        real(key, document, version)
        return real(key, document, version)

    lease = acquire(store, TRAINING, ttl_s=1e9)
    monkeypatch.setattr(store, "replace", lost)
    lease._swap(lease._held.document | {"renewals": 1})
    lease._swap(lease._held.document | {"renewals": 2})
    assert store.read_json(f"{TRAINING}/{FILE}")["renewals"] == 2


def test_epochs_go_up_whatever_happened_to_the_document(store):
    (store.folder(TRAINING) / FILE).write_text("{")
    assert acquire(store, TRAINING, above=8).epoch == 9
    (store.root / TRAINING / FILE).write_text(json.dumps({"epoch": "x", "holder": 3}))
    assert acquire(store, TRAINING, above=9).epoch == 10


def test_of_many_challengers_one_wins(store):
    """Of 16 at once: their epochs are different, and all but the last are told."""
    epochs, barrier = [], threading.Barrier(16)

    def challenge():
        own = open_store(store.root)
        barrier.wait()
        epochs.append(acquire(own, TRAINING, when_held="supersede").epoch)

    threads = [threading.Thread(target=challenge) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(epochs) == list(range(1, 17))
