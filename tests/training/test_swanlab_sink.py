"""SwanLab gets the metrics when it works, and can neither stop nor slow a training when it does not."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from roboimi.storage.store import open_store
from roboimi.vla.training import swanlab_sink
from roboimi.vla.training.metrics import FILE as METRICS
from roboimi.vla.training.records import TRACKING
from roboimi.vla.training.session import tell_watchers
from roboimi.vla.training.swanlab_sink import SwanLabSink, run_id

pytest.importorskip("swanlab")

HANGING = "import time\nSettings = dict\ndef init(**_):\n    time.sleep(600)\n"
FAILING = "Settings = dict\ndef init(**_):\n    raise RuntimeError('no TTY is available for interactive login')\n"
DEAF = """
import time
from types import SimpleNamespace
Settings = dict
def init(**options):
    return SimpleNamespace(mode=options['mode'], id=options['id'], dir='here')
def log(values, step):
    time.sleep(600)
def finish():
    pass
"""
NEVER_FINISHING = DEAF.replace("time.sleep(600)", "pass").replace(
    "def finish():\n    pass", "def finish():\n    time.sleep(600)"
)


@pytest.fixture
def replace_swanlab(tmp_path, monkeypatch):
    """Make the child import a module of that source as `swanlab`."""

    def replace(source: str) -> None:
        folder = tmp_path / "modules"
        folder.mkdir()
        (folder / "swanlab.py").write_text(source)
        monkeypatch.setenv("PYTHONPATH", str(folder))

    return replace


def make_sink(folder: Path, **options) -> SwanLabSink:
    return SwanLabSink("offline", folder, training_key="k" * 64, name="arm", config={"head": {"n_emb": 32}}, **options)


def test_the_run_id_is_a_function_of_the_key():
    assert run_id("a" * 64) == run_id("a" * 64) == "6dl5vt15rq84vholfyw8v"
    assert run_id("a" * 64) != run_id("b" * 64)


def test_a_real_offline_run_has_the_metrics(tmp_path):
    sink = make_sink(tmp_path)
    for step in range(1, 4):
        sink.log({"train/loss": 1 / step, "kind": "train"}, step)
    status = sink.finish(timeout_s=120)
    assert status.get("problem") is None
    assert (status["mode"], status["id"]) == ("offline", run_id("k" * 64))
    folder = Path(status["dir"])
    assert folder.is_relative_to(tmp_path)
    (record,) = folder.glob("run-*.swanlab")
    assert record.read_bytes().count(b"train/loss") >= 1
    assert "n_emb" in (folder / "files" / "config.yaml").read_text()


def test_disabled_starts_nothing(tmp_path):
    sink = SwanLabSink("disabled", tmp_path, training_key="k", name="arm")
    sink.log({"loss": 1.0}, 1)
    assert sink.finish() == {"mode": "disabled"}
    assert list(tmp_path.iterdir()) == []


def test_without_the_package_it_is_off(tmp_path, monkeypatch):
    monkeypatch.setattr(swanlab_sink.importlib.util, "find_spec", lambda name: None)
    sink = make_sink(tmp_path)
    sink.log({"loss": 1.0}, 1)
    assert sink.finish() == {"mode": "disabled", "problem": "swanlab is not installed"}


def test_an_init_that_fails_is_told_once_and_stops_nothing(tmp_path, replace_swanlab, capsys):
    replace_swanlab(FAILING)
    sink = make_sink(tmp_path)
    sink._child.wait(60)
    for step in range(3):
        sink.log({"loss": 1.0}, step)
    status = sink.finish()
    assert "SwanLab is off" in status["problem"]
    assert "interactive login" in (tmp_path / "swanlab" / "sink.log").read_text()
    assert capsys.readouterr().err.count("warning:") == 1


def test_an_init_that_hangs_is_never_waited_for(tmp_path, replace_swanlab):
    replace_swanlab(HANGING)
    sink = make_sink(tmp_path)
    started = time.monotonic()
    for step in range(20_000):
        sink.log({"train/loss": 0.123456789, "train/grad_norm": 1.5}, step)
    assert time.monotonic() - started < 5.0
    assert sink.dropped > 10_000
    started = time.monotonic()
    status = sink.finish(timeout_s=0.2)
    assert time.monotonic() - started < 5.0
    assert "did not finish" in status["problem"]
    assert status["dropped"] == sink.dropped


def test_an_init_that_hangs_is_given_up_by_the_child_itself(tmp_path, replace_swanlab):
    replace_swanlab(HANGING)
    sink = make_sink(tmp_path, init_timeout_s=0.2)
    assert sink._child.wait(60) == 3
    sink.log({"loss": 1.0}, 1)
    assert "SwanLab is off" in sink.finish()["problem"]


@pytest.mark.parametrize("source", [DEAF, NEVER_FINISHING], ids=["log hangs", "finish hangs"])
def test_the_end_has_a_deadline(tmp_path, replace_swanlab, source):
    replace_swanlab(source)
    sink = make_sink(tmp_path)
    sink.log({"loss": 1.0}, 1)
    started = time.monotonic()
    assert "did not finish" in sink.finish(timeout_s=1.0)["problem"]
    assert time.monotonic() - started < 10.0
    assert sink._child is None


def test_online_without_a_key_becomes_offline(tmp_path, replace_swanlab, monkeypatch):
    monkeypatch.delenv("SWANLAB_API_KEY", raising=False)
    replace_swanlab(DEAF)
    sink = SwanLabSink("online", tmp_path, training_key="k", name="arm")
    assert sink.finish(timeout_s=60)["mode"] == "offline"


def test_where_the_curves_are_is_told_while_the_training_runs(tmp_path, replace_swanlab, monkeypatch):
    monkeypatch.setenv("SWANLAB_API_KEY", "of-nobody")
    replace_swanlab(DEAF.replace("dir='here')", "dir='here', url='https://swanlab.example.org/run/1')"))
    store = open_store(tmp_path / "store")
    folder = store.folder("trainings/k")
    (folder / METRICS).write_text("")
    sink = SwanLabSink("online", folder, training_key="k", name="arm")
    while sink.url is None:
        time.sleep(0.02)
    tell_watchers(store, "trainings/k", folder, sink)
    assert store.read_json(f"trainings/k/{TRACKING}") == {"url": "https://swanlab.example.org/run/1"}
    sink.finish(timeout_s=60)
    assert sink.url is None


def test_curves_that_are_kept_offline_are_nowhere_to_be_seen(tmp_path, replace_swanlab):
    replace_swanlab(DEAF)
    sink = make_sink(tmp_path)
    assert sink.url is None
    sink.finish(timeout_s=60)


def test_the_child_outlives_signals_and_ends_when_its_trainer_is_killed(tmp_path, replace_swanlab):
    replace_swanlab(DEAF.replace("time.sleep(600)", "open('logged', 'a').write(str(step))"))
    trainer = f"""
import sys, time
sys.path.insert(0, {str(Path(swanlab_sink.__file__).parents[3])!r})
from pathlib import Path
from roboimi.vla.training.swanlab_sink import SwanLabSink
sink = SwanLabSink("offline", Path({str(tmp_path)!r}), training_key="k", name="arm")
sink.log({{"loss": 1.0}}, 7)
print(sink._child.pid, flush=True)
time.sleep(600)
"""
    process = subprocess.Popen([sys.executable, "-c", trainer], stdout=subprocess.PIPE, text=True)
    child = os.pidfd_open(int(process.stdout.readline()))
    try:
        while not (tmp_path / "swanlab" / "logged").exists():
            time.sleep(0.05)
        signal.pidfd_send_signal(child, signal.SIGINT)
        signal.pidfd_send_signal(child, signal.SIGTERM)
        assert not select.select([child], [], [], 0.3)[0], "a signal ended the child"
    finally:
        process.kill()
        process.wait()
    assert select.select([child], [], [], 30)[0], "the child is still there"
    assert json.loads((tmp_path / "swanlab" / "status.json").read_text())["id"] == run_id("k")
