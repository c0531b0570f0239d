"""Protects the supervisor: a training that is killed goes on in the same step, bit for bit; what is hopeless ends."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest

from roboimi.errors import ConfigError
from roboimi.storage.store import Store, open_store
from roboimi.vla.config import training_key
from roboimi.vla.train_vla import train
from roboimi.vla.training.lease import FILE as LEASE
from roboimi.vla.training.records import training_prefix
from roboimi.vla.training.supervisor import CrashedError, Request, supervise

STEPS = "train.steps=40"
ALWAYS = "train.checkpoint_interval_s=0"


@pytest.fixture
def request_of(dataset, store, tiny_overrides) -> Callable[..., Request]:
    """`request_of("train.steps=8")`: the tiny training, asked of a supervisor."""

    def make(*overrides: str) -> Request:
        return Request(
            [*tiny_overrides, "backbone=privileged_state", *overrides],
            str(dataset.root),
            "standin",
            store.uri,
            "run/arm",
        )

    return make


@pytest.fixture
def prefix_of(make_run, dataset) -> Callable[..., str]:
    """Where the training of these overrides lies."""

    def find(*overrides: str) -> str:
        return training_prefix(training_key(make_run(*overrides).fingerprint(dataset.digest, None)))

    return find


def holder(store: Store, training: str) -> int | None:
    """The process that trains."""
    return ((store.read_json(f"{training}/{LEASE}") or {}).get("holder") or {}).get("pid")


class Killer(threading.Thread):
    """Kills the training's process, up to `times` different ones, each once it has committed `step`."""

    def __init__(self, store: Store, training: str, *, step: int, times: int, number: int = signal.SIGKILL):
        super().__init__(daemon=True)
        self.store, self.training, self.step, self.times, self.number = store, training, step, times, number
        self.killed: list[int] = []

    def run(self) -> None:
        while len(self.killed) < self.times:
            pid = holder(self.store, self.training)
            committed = (self.store.read_json(f"{self.training}/LATEST.json") or {}).get("step", 0)
            if pid and pid not in self.killed and committed >= self.step:
                os.kill(pid, self.number)
                self.killed.append(pid)
            time.sleep(0.01)


def test_a_killed_training_goes_on_and_ends_as_if_nothing_had_been(request_of, prefix_of, make_run, store, tmp_path):
    overrides = (STEPS, ALWAYS)
    training = prefix_of(*overrides)
    killer = Killer(store, training, step=3, times=1)
    killer.start()
    reasons: list[str] = []
    result = supervise(request_of(*overrides), store, training, restarts=1, first_pause_s=0, on_restart=reasons.append)
    assert killer.killed
    assert len(reasons) == 1
    assert "SIGKILL" in reasons[0]
    assert (result.steps, result.attempts, result.adopted) == (40, 2, False)
    alone = train(make_run(*overrides), store=open_store(tmp_path / "alone"))
    assert result.policy_digest == alone.policy_digest


def test_a_training_that_gets_nowhere_is_given_up(request_of, prefix_of, store):
    training = prefix_of(STEPS)
    killer = Killer(store, training, step=0, times=3)
    killer.start()
    reasons: list[str] = []
    with pytest.raises(CrashedError, match="SIGKILL") as caught:
        supervise(request_of(STEPS), store, training, restarts=2, first_pause_s=0, on_restart=reasons.append)
    assert len(killer.killed) == 3
    assert len(reasons) == 2
    assert caught.value.retryable


def test_what_running_again_cannot_help_ends_at_once(request_of, prefix_of, store):
    reasons: list[str] = []
    with pytest.raises(ConfigError, match=r"pred_horizon=99"):
        supervise(
            request_of("pred_horizon=99"), store, prefix_of("pred_horizon=99"), restarts=5, on_restart=reasons.append
        )
    assert reasons == []


def test_a_training_that_was_told_to_stop_is_not_started_again(request_of, prefix_of, store, tmp_path):
    overrides = ("train.steps=100000", ALWAYS)
    training = prefix_of(*overrides)
    script = (
        "import sys, json, roboimi.campaign_step as c\n"
        "from roboimi.errors import RoboimiError\n"
        "from roboimi.storage.launch_record import fail\n"
        "from roboimi.storage.store import open_store\n"
        "from roboimi.vla.training.supervisor import Request, supervise\n"
        "request = Request(**json.loads(sys.argv[1]))\n"
        "with c.campaign_step(request.store, 'run', 'train', 'arm') as step:\n"
        "    supervise(request, step.store, sys.argv[2], restarts=3, on_restart=lambda why: print('RESTART', why))\n"
    )

    command = [sys.executable, "-c", script, json.dumps(dataclasses.asdict(request_of(*overrides))), training]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while (store.read_json(f"{training}/LATEST.json") or {}).get("step", 0) < 3:
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.02)
    child = holder(store, training)
    process.terminate()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143, output
    assert "RESTART" not in output
    assert not os.path.exists(f"/proc/{child}")
    record = store.read_json("campaigns/run/arm/train.json")
    assert (record["status"], record["failure_class"]) == ("failed", "interrupted")
    latest, lines = store.read_json(f"{training}/LATEST.json"), store.read_json(f"{training}/FAILURE.json")
    assert lines["failure_class"] == "interrupted"
    assert str(latest["step"]) in lines["reason"]
