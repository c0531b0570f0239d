"""SIGTERM at any step: committed within 20 s, not a step lost; where the store is gone, spooled on this machine."""

import random
import signal
import time

import pytest

from roboimi.storage.store import open_store
from roboimi.vla.training import loop
from roboimi.vla.training.reader import CheckpointReader
from tests.faults.harness import final_state, fork_training, the_training

GRACE_S = 20.0


def stop_at_step(run, uri, step):
    """SIGTERM right after step `step`: the exit code, the step it says, and how long it took."""
    child = fork_training(run, uri)
    while child.next("step") < step:
        pass
    sent = time.monotonic()
    child.send(signal.SIGTERM)
    code = child.end()
    return code, child.last("step"), time.monotonic() - sent, child


@pytest.mark.parametrize("trials", [3, pytest.param(100, marks=[pytest.mark.faults, pytest.mark.timeout(3600)])])
def test_the_last_step_is_committed_in_time(make_run, unkilled, tmp_path, note, trials):
    steps = 30
    run = make_run(f"train.steps={steps}", "train.checkpoint_interval_s=1000")
    numbers = random.Random(trials)
    took = []
    for trial in range(trials):
        uri = str(tmp_path / str(trial))
        code, step, seconds, child = stop_at_step(run, uri, numbers.randint(1, steps - 10))
        assert code == 143, child.said[-1]
        store = open_store(uri)
        assert CheckpointReader(store, the_training(store)).newest()[1].step == step
        took.append(seconds)
        again = fork_training(run, uri)
        assert again.end() == 0
        assert again.said[0]["step"] == step + 1
        expected = unkilled(f"train.steps={steps}", "train.checkpoint_interval_s=1000")
        assert final_state(store, again.last("result")) == expected
    took.sort()
    note(n=trials, lost_steps=0, seconds_max=round(took[-1], 2), seconds_median=round(took[len(took) // 2], 2))
    assert took[-1] < GRACE_S


def test_without_a_store_it_waits_on_this_machine_and_the_next_run_brings_it_there(
    make_run, unkilled, s3_environment, minio_server, toxiproxy, monkeypatch
):
    proxy = toxiproxy.proxy(minio_server.host)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    monkeypatch.setattr(loop, "SECONDS_TO_STOP", 3.0)
    run, uri = make_run("train.steps=60"), f"s3://{minio_server.new_bucket()}/store"
    child = fork_training(run, uri)
    while child.next("step") < 8:
        pass
    proxy.enable(False)
    while child.next("step") < 16:
        pass
    sent = time.monotonic()
    child.send(signal.SIGTERM)
    assert child.end() == 143, child.said[-1]
    assert time.monotonic() - sent < GRACE_S + 10
    assert "saved on this machine alone" in child.last("error")
    step = child.last("step")
    proxy.enable(True)
    again = fork_training(run, uri)
    assert again.end() == 0, again.said[-1]
    assert again.said[0]["step"] == step + 1
    assert final_state(open_store(uri), again.last("result")) == unkilled("train.steps=60")
