"""SwanLab as a sink that can neither stop nor slow a training.

SwanLab runs in a child process of its own. In the training's process it would take over SIGINT, wrap the terminal and
run four threads beside the step loop, and a hang inside it would be a hang of the training; `metrics.jsonl` has every
value anyway. What a child cannot do to its parent is the whole guarantee:

- metrics go through a pipe that is never waited for: when the child does not read, lines are dropped and counted;
- a child that dies closes the pipe, which is noticed and reported once;
- at the end the child gets a deadline, then it is killed;
- when the trainer is killed instead, the child sees the pipe close, finishes the run and goes.

This file is both sides: imported, the sink; run as a script, the child. The child imports nothing of this project.
"""

import contextlib
import hashlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PROJECT = "roboimi"
FOLDER = "swanlab"
STATUS_FILE = "status.json"
LOG_FILE = "sink.log"
INIT_TIMEOUT_S = 60.0
FINISH_TIMEOUT_S = 30.0
LONGEST_LINE = 4096
"""Bytes that a pipe takes whole or not at all (PIPE_BUF on Linux), so that no half line is ever written."""

RUN_ID_LENGTH = 21
_BASE36 = "0123456789abcdefghijklmnopqrstuvwxyz"


def run_id(training_key: str) -> str:
    """The SwanLab run id of a training: the same for every attempt, so a resumed training continues its curve.

    The first 21 characters (what SwanLab's pattern allows) of the key's SHA-256 in base 36.
    """
    number = int.from_bytes(hashlib.sha256(training_key.encode()).digest(), "big")
    digits = ""
    while number:
        number, digit = divmod(number, 36)
        digits = _BASE36[digit] + digits
    return digits[:RUN_ID_LENGTH]


class SwanLabSink:
    """Sends the metrics of one training to SwanLab; every method returns at once, whatever happens over there.

    Args:
        mode: `online`, `offline` or `disabled`; `online` without SWANLAB_API_KEY becomes `offline`.
        folder: the training's folder; SwanLab writes below `folder/swanlab`.
        training_key: gives the run id.
        name: of the run, for people.
        config: shown with the run.
        init_timeout_s: seconds that SwanLab gets to start before the sink gives it up.
    """

    def __init__(
        self,
        mode: str,
        folder: Path,
        *,
        training_key: str,
        name: str,
        config: Mapping[str, Any] | None = None,
        init_timeout_s: float = INIT_TIMEOUT_S,
    ):
        self.problem: str | None = None
        self.dropped = 0
        self._folder = folder / FOLDER
        self._child: subprocess.Popen | None = None
        self._status: dict[str, Any] = {"mode": "disabled"}
        if mode == "disabled":
            return
        if importlib.util.find_spec("swanlab") is None:
            self.problem = "swanlab is not installed"
            return
        if mode == "online" and not os.environ.get("SWANLAB_API_KEY"):
            mode = "offline"
        settings = {
            "mode": mode,
            "log_dir": str(self._folder),
            "project": PROJECT,
            "name": name,
            "id": run_id(training_key),
            "resume": "allow",
            "config": dict(config or {}),
        }
        with self._guarded():
            self._start({"init": settings, "init_timeout_s": init_timeout_s, "finish_timeout_s": FINISH_TIMEOUT_S})

    def log(self, values: Mapping[str, Any], step: int) -> None:
        """Send the numbers among `values`; dropped (and counted) when SwanLab does not keep up."""
        if self._child is None or self.problem is not None:
            return
        numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
        with self._guarded():
            line = (json.dumps({"step": step, "log": numbers}) + "\n").encode()
            try:
                if len(line) > LONGEST_LINE:
                    raise BlockingIOError
                os.write(self._child.stdin.fileno(), line)
            except BlockingIOError:
                self.dropped += 1

    @property
    def url(self) -> str | None:
        """Where the curves are to be seen; None offline, and until SwanLab has said."""
        if self._child is None:
            return None
        try:
            return json.loads((self._folder / STATUS_FILE).read_text()).get("url")
        except ValueError:  # it is just being written
            return None

    def finish(self, timeout_s: float = FINISH_TIMEOUT_S) -> dict[str, Any]:
        """Close the run, waiting at most `timeout_s` seconds.

        Returns:
            What is known of the run: `mode`, `id`, `dir`, `url` (online), `problem`, `dropped`.
        """
        if self._child is not None:
            with self._guarded():
                self._end_child(timeout_s)
                self._status = json.loads((self._folder / STATUS_FILE).read_text())
            self._child = None
        status = self._status | {"problem": self.problem, "dropped": self.dropped or None}
        return {name: value for name, value in status.items() if value is not None}

    def _start(self, request: dict[str, Any]) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._status = {"mode": request["init"]["mode"], "id": request["init"]["id"]}
        (self._folder / STATUS_FILE).write_text(json.dumps(self._status))
        with open(self._folder / LOG_FILE, "ab") as log:
            self._child = subprocess.Popen(
                # -P: the script's folder must not shadow packages of the same names as the modules beside it.
                [sys.executable, "-P", str(Path(__file__).resolve())],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                # SwanLab reads a .env file in its working folder: not one that happens to lie where the user is.
                cwd=self._folder,
            )
        os.write(self._child.stdin.fileno(), (json.dumps(request) + "\n").encode())
        os.set_blocking(self._child.stdin.fileno(), False)

    def _end_child(self, timeout_s: float) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._child.stdin.close()
        try:
            code = self._child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
            self._report(f"SwanLab did not finish within {timeout_s:g} s and was stopped")
        else:
            if code != 0:
                self._report(f"SwanLab ended with code {code}; see {self._folder / LOG_FILE}")

    @contextlib.contextmanager
    def _guarded(self):
        """The one place of the project where any exception is caught to go on.

        Curves in a web page are a convenience; a week of training must not end because they cannot be drawn. The
        metrics themselves are in `metrics.jsonl`, and the problem is on standard error and in the training's result.
        """
        try:
            yield
        except Exception as error:
            self._report(f"SwanLab is off ({type(error).__name__}: {error}); see {self._folder / LOG_FILE}")

    def _report(self, problem: str) -> None:
        """Tell the first problem, once."""
        if self.problem is None:
            self.problem = problem
            print(f"warning: {problem}; metrics are in metrics.jsonl", file=sys.stderr, flush=True)


def _child_main() -> None:
    """Read the request and then metrics from standard input until it closes."""
    # The trainer decides when this ends: a Ctrl-C reaches the whole process group.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    lines = sys.stdin.buffer
    request = json.loads(lines.readline())
    threading.Thread(target=_outlive, args=(os.getppid(), request["finish_timeout_s"]), daemon=True).start()
    watchdog = _exit_after(request["init_timeout_s"], code=3)
    import swanlab

    quiet = {"hardware": False, "requirements": False, "conda": False, "git": False, "monitor": False}
    settings = swanlab.Settings(interactive=False, probe=quiet, terminal={"proxy_type": "none"})
    run = swanlab.init(**request["init"], settings=settings)
    watchdog.cancel()
    status = {"mode": run.mode, "id": run.id, "dir": str(run.dir)}
    if status["mode"] == "online":
        status["url"] = run.url
    Path(STATUS_FILE).write_text(json.dumps(status))
    for line in lines:
        message = json.loads(line)
        swanlab.log(message["log"], step=message["step"])
    swanlab.finish()


def _outlive(trainer: int, seconds: float) -> None:
    """Once the trainer is gone, and cannot end this process any more, leave `seconds` seconds for the rest."""
    while os.getppid() == trainer:
        time.sleep(1.0)
    _exit_after(seconds, code=4).join()


def _exit_after(seconds: float, code: int) -> threading.Timer:
    """End this process in `seconds` seconds, whatever hangs."""
    timer = threading.Timer(seconds, os._exit, (code,))
    timer.daemon = True
    timer.start()
    return timer


if __name__ == "__main__":
    _child_main()
