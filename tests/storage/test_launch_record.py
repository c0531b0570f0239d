"""A launch record tells of a step while it runs, after it ended, and why it failed."""

import subprocess
import sys

import pytest

from roboimi.errors import DataError
from roboimi.storage.launch_record import code_revision, launch_record, record_key
from roboimi.storage.store import open_store

KEY = record_key("job-1", "projection-96", "train")


def test_a_record_is_there_while_the_step_runs_and_after_it(tmp_path):
    store = open_store(tmp_path)
    with launch_record(store, "job-1", "projection-96", "train", dataset="sha256:0") as record:
        running = store.read_json(KEY)
        record["checkpoint"] = "trainings/x"
    ended = store.read_json(KEY)
    assert running["status"] == "running"
    assert running["pid"] > 0
    assert ended["status"] == "succeeded"
    assert ended["checkpoint"] == "trainings/x"
    assert ended["dataset"] == "sha256:0"
    assert ended["seconds"] >= 0


def test_a_failed_step_says_why_and_whether_a_retry_can_help(tmp_path):
    store = open_store(tmp_path)
    with pytest.raises(DataError), launch_record(store, "job-1", "projection-96", "train"):
        raise DataError("Episode 3 has no camera top.")
    record = store.read_json(KEY)
    assert (record["status"], record["failure_class"], record["retryable"]) == ("failed", "bad-data", False)
    assert record["reason"] == "Episode 3 has no camera top."


def test_an_unforeseen_error_is_a_crash_that_a_retry_may_cure(tmp_path):
    store = open_store(tmp_path)
    with pytest.raises(ZeroDivisionError), launch_record(store, "job-1", "projection-96", "train"):
        _ = 1 / 0
    record = store.read_json(KEY)
    assert (record["failure_class"], record["retryable"]) == ("crash", True)
    assert record["reason"] == "ZeroDivisionError: division by zero"


def test_a_killed_step_leaves_its_record_running(tmp_path):
    program = (
        "import os, signal, sys; from roboimi.storage.launch_record import launch_record;"
        "from roboimi.storage.store import open_store\n"
        "with launch_record(open_store(sys.argv[1]), 'job-1', 'projection-96', 'train'):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False).returncode == -9
    assert open_store(tmp_path).read_json(KEY)["status"] == "running"


def test_the_revision_of_an_image_wins_over_the_checkout(monkeypatch):
    monkeypatch.setenv("ROBOIMI_REVISION", "0" * 40)
    assert code_revision() == "0" * 40
