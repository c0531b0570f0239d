"""The real SwanLab fails in the middle of a training, or its server never answers: the training does not notice."""

import os
import signal
import socket
from pathlib import Path

import pytest

from roboimi.storage.store import open_store
from tests.faults.harness import final_state, fork_training

STEPS = "train.steps=40"
CAMPAIGN = [pytest.mark.faults, pytest.mark.timeout(600)]


def of_swanlab() -> list[int]:
    """The SwanLab processes of this one."""
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    return [pid for pid in map(int, children) if b"swanlab_sink" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def metrics_of(store, result) -> list[int]:
    lines = (store.fetch(result["training"], ["metrics.jsonl"]) / "metrics.jsonl").read_text().splitlines()
    return [line for line in lines if '"kind": "train"' in line or '"kind":"train"' in line]


@pytest.mark.parametrize("at", [10, *(pytest.param(step, marks=CAMPAIGN) for step in (1, 39))])
def test_swanlab_is_killed(make_run, unkilled, tmp_path, note, at):
    store = open_store(tmp_path / "store")

    def before(report):
        def see(step):
            if step == at:
                (pid,) = of_swanlab()
                os.kill(pid, signal.SIGKILL)
                report({"killed": pid})

        return see

    child = fork_training(make_run(STEPS, "train.tracking=offline"), str(tmp_path / "store"), before=before)
    assert child.end() == 0, child.said[-1]
    result = child.last("result")
    assert child.last("killed")
    assert final_state(store, result) == unkilled(STEPS)
    assert len(metrics_of(store, result)) == 20
    assert result["tracking"]["problem"]
    note(killed_at_step=at, problem=result["tracking"]["problem"])


@pytest.mark.faults
@pytest.mark.timeout(600)
def test_its_server_accepts_and_says_nothing(make_run, unkilled, tmp_path, note, monkeypatch):
    store = open_store(tmp_path / "store")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("SWANLAB_API_HOST", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("SWANLAB_API_KEY", "a-key-of-no-account")
        child = fork_training(make_run(STEPS, "train.tracking=online"), str(tmp_path / "store"))
        assert child.end() == 0, child.said[-1]
    result = child.last("result")
    assert final_state(store, result) == unkilled(STEPS)
    assert len(metrics_of(store, result)) == 20
    assert result["tracking"]["problem"]
    note(tracking=result["tracking"])
