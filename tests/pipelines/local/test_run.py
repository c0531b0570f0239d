"""Protects the process that shows a campaign: what it says when its worker fails, and which processes it may stop."""

import os
import subprocess
import sys
import time

import pytest
from rich.console import Console

from pipelines.local.request import LocalRequest
from pipelines.local.run import _belongs, campaign_id, failures, run_local
from roboimi.errors import StoreError
from tests.pipelines.conftest import ROOT

ARGUMENTS = {"experiments": []}


@pytest.fixture
def console(tmp_path):
    with open(tmp_path / "terminal", "w") as file:
        yield Console(file=file)


def test_a_worker_that_cannot_start_is_explained_by_its_last_words(tmp_path, console):
    arguments = ARGUMENTS | {"store": str(tmp_path / "store")}
    outcome = run_local(arguments, profile="nothing", outputs=tmp_path / "outputs", console=console)
    assert outcome.exit_code == 1
    assert outcome.report is None
    ((sentence, log),) = failures(outcome)
    assert log == str(outcome.log)
    assert sentence.startswith("the campaign ended outside of its steps: ")
    assert "There is no profile 'nothing'" in sentence
    assert "Traceback" in outcome.log.read_text()


def test_a_worker_without_its_owner_does_nothing(tmp_path):
    request = tmp_path / "request.json"
    LocalRequest("local", "job", {}, pipeline_root="", workspace_root="", owner_pid=1).write(request)
    command = [sys.executable, "-m", "pipelines.local.worker", str(request)]
    done = subprocess.run(command, capture_output=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (1, b"")


def test_a_store_that_cannot_be_opened_leaves_no_log(tmp_path, console):
    (tmp_path / "store").touch()
    with pytest.raises(StoreError):
        run_local(
            ARGUMENTS | {"store": str(tmp_path / "store")}, profile="local", outputs=tmp_path / "out", console=console
        )
    assert not (tmp_path / "out").exists()


def test_only_living_processes_of_the_group_are_stopped():
    process = subprocess.Popen(["sleep", "60"], start_new_session=True)
    assert _belongs(process.pid, process.pid)
    assert not _belongs(process.pid, os.getpgid(0))
    process.kill()
    time.sleep(0.2)
    # A zombie: its number is taken, but it is not alive.
    assert not _belongs(process.pid, process.pid)
    process.wait()
    assert not _belongs(process.pid, process.pid)


def test_run_ids_sort_by_time_and_differ():
    ids = [campaign_id() for _ in range(50)]
    assert len(set(ids)) == 50
    assert len({len(name) for name in ids}) == 1
    assert ids[0][:8].isdigit()
