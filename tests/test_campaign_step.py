"""Protects what surrounds every step: its record, its one sentence, and that it never outlives the campaign."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from roboimi.campaign_step import PARENT_VARIABLE, campaign_step, read_pointer, write_pointer
from roboimi.errors import DataError, Interrupted
from roboimi.storage.store import open_store

ROOT = Path(__file__).resolve().parents[1]
KEY = "campaigns/job/campaign/validate.json"

SLEEPER = """
import sys, time
from roboimi.campaign_step import campaign_step
with campaign_step(sys.argv[1], "job", "validate"):
    print("running", flush=True)
    {body}
"""


def record(tmp_path):
    return open_store(tmp_path / "store").read_json(KEY)


def start_step(tmp_path, body="time.sleep(60)", parent=None):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    environment |= {PARENT_VARIABLE: str(parent.pid)} if parent else {}
    command = [sys.executable, "-c", SLEEPER.format(body=body), str(tmp_path / "store")]
    step = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert step.stdout.readline() == "running\n"
    return step


def test_a_step_leaves_its_record_and_its_result(tmp_path):
    with campaign_step(str(tmp_path / "store"), "job", "validate", dataset="d") as step:
        assert record(tmp_path)["status"] == "running"
        step.record["result"] = "fine"
    done = record(tmp_path)
    assert (done["status"], done["result"], done["dataset"], done["pid"]) == ("succeeded", "fine", "d", os.getpid())


def test_a_note_is_there_before_the_step_ends(tmp_path):
    with campaign_step(str(tmp_path / "store"), "job", "validate") as step:
        step.note(training="trainings/1")
        now = record(tmp_path)
        assert (now["status"], now["training"]) == ("running", "trainings/1")


def test_an_error_is_one_sentence_its_exit_code_and_its_class(tmp_path, capsys):
    with pytest.raises(SystemExit) as caught, campaign_step(str(tmp_path / "store"), "job", "validate"):
        raise DataError("Episode 3 is damaged: record it again.")
    assert caught.value.code == DataError.exit_code
    assert capsys.readouterr().err == "error: Episode 3 is damaged: record it again.\n"
    done = record(tmp_path)
    assert (done["status"], done["failure_class"], done["retryable"]) == ("failed", "bad-data", False)


def test_an_unforeseen_error_keeps_its_traceback_and_leaves_a_record(tmp_path):
    with pytest.raises(ZeroDivisionError), campaign_step(str(tmp_path / "store"), "job", "validate"):
        1 / 0  # noqa: B018
    assert record(tmp_path)["failure_class"] == "crash"


def test_the_run_id_of_the_pod_stands_in_for_a_missing_one(tmp_path, monkeypatch):
    monkeypatch.setenv("KFP_RUN_ID", "job")
    with campaign_step(str(tmp_path / "store"), "", "validate"):
        pass
    assert record(tmp_path)["status"] == "succeeded"


def test_a_store_that_cannot_be_opened_is_one_sentence(tmp_path, capsys):
    (tmp_path / "store").write_text("a file")
    with pytest.raises(SystemExit), campaign_step(str(tmp_path / "store"), "job", "validate"):
        pytest.fail("the body must not run")
    assert "cannot be made" in capsys.readouterr().err


def test_sigterm_ends_the_step_and_its_record_says_so(tmp_path):
    step = start_step(tmp_path)
    step.send_signal(signal.SIGTERM)
    assert step.wait(10) == 128 + signal.SIGTERM
    done = record(tmp_path)
    assert (done["status"], done["failure_class"], done["retryable"]) == ("failed", Interrupted.failure_class, True)


def test_a_step_has_a_log_of_its_own_and_its_record_says_where(tmp_path, monkeypatch):
    monkeypatch.setenv("ROBOIMI_LOGS", str(tmp_path / "logs"))
    body = SLEEPER.format(body="import os; os.system('echo from a child'); raise ValueError('the end')")
    command = [sys.executable, "-c", body, str(tmp_path / "store")]
    step = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert step.returncode == 1
    assert (step.stdout, step.stderr) == ("", "")
    log = tmp_path / "logs" / "campaign-validate.log"
    assert record(tmp_path)["log"] == str(log)
    text = log.read_text()
    assert "running\nfrom a child\n" in text
    assert "ValueError: the end" in text


def test_the_handlers_of_before_come_back(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    with campaign_step(str(tmp_path / "store"), "job", "validate"):
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_step_does_not_outlive_the_campaign(tmp_path):
    parent = subprocess.Popen(["sleep", "60"])
    step = start_step(tmp_path, parent=parent)
    time.sleep(0.3)
    assert step.poll() is None
    parent.kill()
    # The parent is left a zombie on purpose: its number is still taken, and yet it is gone.
    assert step.wait(10) == 128 + signal.SIGTERM
    parent.wait()
    assert record(tmp_path)["failure_class"] == "interrupted"


def test_a_busy_step_does_not_outlive_the_campaign_either(tmp_path):
    parent = subprocess.Popen(["sleep", "60"])
    step = start_step(tmp_path, body="[None for _ in iter(int, 1)]", parent=parent)
    parent.kill()
    assert step.wait(10) == 128 + signal.SIGTERM
    parent.wait()


def test_a_step_of_a_campaign_that_is_gone_does_not_start(tmp_path, monkeypatch, capsys):
    gone = subprocess.Popen(["true"])
    gone.wait()
    monkeypatch.setenv(PARENT_VARIABLE, str(gone.pid))
    with pytest.raises(SystemExit), campaign_step(str(tmp_path / "store"), "job", "validate"):
        pytest.fail("the body must not run")
    assert "is gone" in capsys.readouterr().err


def test_a_pointer_comes_back_whole(tmp_path):
    path = tmp_path / "new" / "pointer"
    write_pointer(path, "features/abc", "12ab", feature_dim=768)
    assert read_pointer(path) == {"uri": "features/abc", "digest": "12ab", "feature_dim": 768}
    assert [entry.name for entry in path.parent.iterdir()] == ["pointer"]


@pytest.mark.parametrize("text", ["", "[]", '{"uri": "a"}', "not json"])
def test_what_is_no_pointer_is_refused(tmp_path, text):
    (tmp_path / "pointer").write_text(text)
    with pytest.raises(DataError, match="run the step that writes it again"):
        read_pointer(tmp_path / "pointer")
    with pytest.raises(DataError, match="cannot be read"):
        read_pointer(tmp_path / "missing")
