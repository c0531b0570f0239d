"""One writer at a time: a live one is named, a dead one is no obstacle."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from roboimi.errors import HeldByAnotherError
from roboimi.vla.training.lock import EXPIRES_AFTER_S, FILE, single_writer

HOLD = """
import sys, time
from pathlib import Path
from roboimi.vla.training.lock import single_writer
with single_writer(Path(sys.argv[1]), "trainings/abc"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_live_writer_is_named(tmp_path, holder):
    sentence = rf"trainings/abc.*process {holder.pid} on {socket.gethostname()}"
    with pytest.raises(HeldByAnotherError, match=sentence), single_writer(tmp_path, "trainings/abc"):
        pass
    assert json.loads((tmp_path / FILE).read_text())["pid"] == holder.pid


def test_a_killed_writer_is_no_obstacle(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with single_writer(tmp_path, "trainings/abc"):
        assert json.loads((tmp_path / FILE).read_text())["pid"] == os.getpid()


def test_the_lock_ends_with_its_block_also_after_an_error(tmp_path):
    with pytest.raises(RuntimeError), single_writer(tmp_path, "trainings/abc"):
        raise RuntimeError
    with single_writer(tmp_path, "trainings/abc"):
        pass
    assert (tmp_path / FILE).read_text() == ""


def test_the_same_process_cannot_hold_it_twice(tmp_path):
    again = single_writer(tmp_path, "trainings/abc")
    with single_writer(tmp_path, "trainings/abc"), pytest.raises(HeldByAnotherError), again:
        pass


@pytest.mark.parametrize(("age", "refused"), [(1.0, True), (EXPIRES_AFTER_S + 1, False)])
def test_a_writer_on_another_host_counts_while_its_heartbeat_is_fresh(tmp_path, age, refused):
    (tmp_path / FILE).write_text(json.dumps({"host": "elsewhere", "pid": 7, "heartbeat": time.time() - age}))
    if refused:
        with pytest.raises(HeldByAnotherError, match="process 7 on elsewhere"), single_writer(tmp_path, "x"):
            pass
        assert "elsewhere" in (tmp_path / FILE).read_text()
    else:
        with single_writer(tmp_path, "x"):
            pass


def test_the_heartbeat_goes_on_while_the_lock_is_held(tmp_path, monkeypatch):
    monkeypatch.setattr("roboimi.vla.training.lock.HEARTBEAT_S", 0.05)
    with single_writer(tmp_path, "x"):
        first = json.loads((tmp_path / FILE).read_text())["heartbeat"]
        deadline = time.monotonic() + 10
        while json.loads((tmp_path / FILE).read_text())["heartbeat"] == first:
            assert time.monotonic() < deadline
            time.sleep(0.02)
