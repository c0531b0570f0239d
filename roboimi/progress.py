"""Progress of a long computation: a bar on a terminal, or a small file that another process shows.

A campaign runs each step in its own process, whose output goes to a log; the process that the user sees draws the bars
from the folder that the environment variable `ROBOIMI_PROGRESS` names. It holds a file `<pid>.json` for each process at
work, one JSON object: `{"label": str, "done": int, "total": int, "note": str, "time": seconds since the epoch}`.
"""

import contextlib
import json
import os
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

ENVIRONMENT_VARIABLE = "ROBOIMI_PROGRESS"
SECONDS_BETWEEN_WRITES = 0.2


def progress_file(folder: Path, pid: int) -> Path:
    """Where the process `pid` says how far it is."""
    return folder / f"{pid}.json"


class _Sink(Protocol):
    def show(self, done: int, note: str) -> None: ...

    def close(self) -> None: ...


class _Silent:
    def show(self, done: int, note: str) -> None:
        pass

    def close(self) -> None:
        pass


class _File:
    def __init__(self, path: Path, label: str, total: int):
        self._path, self._label, self._total = path, label, total

    def show(self, done: int, note: str) -> None:
        state = {"label": self._label, "done": done, "total": self._total, "note": note, "time": time.time()}
        temporary = self._path.with_suffix(".writing")
        # A disk without room must not end the computation whose progress is shown: the bar then stands still.
        with contextlib.suppress(OSError):
            temporary.write_text(json.dumps(state))
            temporary.replace(self._path)

    def close(self) -> None:
        self._path.unlink(missing_ok=True)


class _Bar:
    def __init__(self, label: str, total: int):
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = RichProgress(*columns, TextColumn("{task.fields[note]}"), transient=True)
        self._task = self._bar.add_task(label, total=total, note="")
        self._bar.start()

    def show(self, done: int, note: str) -> None:
        self._bar.update(self._task, completed=done, note=note)

    def close(self) -> None:
        self._bar.stop()


class Progress:
    """How far a computation is: `with Progress.start("train", total=9) as progress: progress.update(1, "loss 0.1")`."""

    def __init__(self, sink: _Sink, total: int):
        self.total = total
        self._sink = sink
        self._shown_at = 0.0

    @classmethod
    def start(cls, label: str, total: int) -> Self:
        """Choose where to show progress: the folder that `ROBOIMI_PROGRESS` names, else a terminal, else nowhere."""
        folder = os.environ.get(ENVIRONMENT_VARIABLE)
        if folder:
            progress = cls(_File(progress_file(Path(folder), os.getpid()), label, total), total)
        elif sys.stderr.isatty() and sys.stdout.isatty():
            progress = cls(_Bar(label, total), total)
        else:
            progress = cls(_Silent(), total)
        progress.update(0)
        return progress

    def update(self, done: int, note: str = "") -> None:
        """Show `done` of `total`; calls closer together than 0.2 s are dropped, so this may be called every step."""
        now = time.monotonic()
        if now - self._shown_at >= SECONDS_BETWEEN_WRITES or done >= self.total:
            self._shown_at = now
            self._sink.show(done, note)

    def close(self) -> None:
        """Take the bar away."""
        self._sink.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
