"""Protects what a person sees: one line a finished step, killed steps told apart, names shown as they are."""

import json
import os
import socket
import subprocess

import pytest
from rich.console import Console

from pipelines.display import Display, failure_sentence, finished_line, read_records, was_killed
from roboimi.errors import DataError
from roboimi.progress import progress_file
from roboimi.storage.launch_record import CAMPAIGN, launch_record
from roboimi.storage.store import open_store


@pytest.fixture
def store(tmp_path):
    return open_store(tmp_path / "store")


@pytest.fixture
def console(tmp_path):
    with open(tmp_path / "terminal", "w") as file:
        yield Console(file=file, width=200)


def shown(console):
    console.file.flush()
    with open(console.file.name) as file:
        return file.read().splitlines()


def dead_pid():
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def record(**fields):
    base = {"arm": "a", "step": "train", "status": "running", "host": socket.gethostname(), "pid": os.getpid()}
    return base | fields


def test_a_step_is_printed_once_when_it_ends(store, console, tmp_path):
    with Display(console, tmp_path / "progress") as display:
        with launch_record(store, "job", "wide", "train") as running:
            display.show(read_records(store, "job"))
            running["result"] = "20 steps, loss 0.5"
        display.show(read_records(store, "job"))
        display.show(read_records(store, "job"))
    assert shown(console) == ["done   train wide                   20 steps, loss 0.5, 0 s"]


def test_a_step_that_was_found_finished_says_so():
    done = record(status="succeeded", result="20 steps", seconds=0.4, recognised=True)
    assert finished_line(done).endswith("20 steps, found finished")


def test_a_failed_step_shows_its_sentence(store, console, tmp_path):
    with pytest.raises(DataError), launch_record(store, "job", CAMPAIGN, "validate"):
        raise DataError("Episode 3 has no camera 'top' [left]: record it again.")
    with Display(console, tmp_path / "progress") as display:
        display.show(read_records(store, "job"))
    (line,) = shown(console)
    # Square brackets are the user's, not markup.
    assert line.startswith("failed validate")
    assert "Episode 3 has no camera 'top' [left]: record it again." in line


def test_a_running_record_of_a_dead_process_was_killed():
    dead = record(pid=dead_pid())
    assert was_killed(dead)
    assert "was killed" in failure_sentence(dead)
    assert "was killed" in finished_line(dead)
    assert not was_killed(record())
    assert not was_killed(record(pid=dead_pid(), host="another-machine"))
    assert not was_killed(record(pid=dead_pid(), status="succeeded"))


def test_records_come_in_the_order_of_their_start(store):
    for arm, step, started in [("b", "train", 3), (CAMPAIGN, "validate", 1), ("a", "evaluate", 2)]:
        fields = {"arm": arm, "step": step, "started_at": f"2026-01-01T00:00:0{started}", "pid": 1}
        store.write_json(f"campaigns/job/{arm}/{step}.json", fields)
    store.write_json("campaigns/job/report.json", {"not": "a record"})
    assert [item["step"] for item in read_records(store, "job")] == ["validate", "evaluate", "train"]
    assert read_records(store, "another") == []


def test_on_a_terminal_each_running_step_has_a_bar(store, tmp_path):
    with open(tmp_path / "terminal", "w+") as file:
        console = Console(file=file, width=200, force_terminal=True)
        beside = subprocess.Popen(["sleep", "60"])
        with Display(console, tmp_path) as display, launch_record(store, "job", "wide", "train"):
            store.write_json("campaigns/job/narrow/train.json", record(arm="narrow", pid=beside.pid, started_at=""))
            # What a process that runs no step writes must not be taken for a step's.
            progress_file(tmp_path, 1).write_text(json.dumps({"done": 9, "total": 10, "note": "stranger"}))
            progress_file(tmp_path, os.getpid()).write_text(json.dumps({"done": 7, "total": 20, "note": "loss 0.25"}))
            progress_file(tmp_path, beside.pid).write_text(json.dumps({"done": 3, "total": 30, "note": "loss 0.5"}))
            display.show(read_records(store, "job"))
        beside.kill()
        beside.wait()
        file.seek(0)
        text = file.read()
    for part in ("train wide", "7/20", "loss 0.25", "train narrow", "3/30", "loss 0.5"):
        assert part in text
    assert "9/10" not in text
