"""What a person sees of a running campaign: one line for each finished step, and a bar for each that runs.

Everything shown comes from the launch records and from the progress files, so any process that can read the store could
show the same.
"""

import json
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from roboimi.progress import progress_file
from roboimi.storage.launch_record import CAMPAIGN
from roboimi.storage.store import Store

Record = dict[str, Any]


def read_records(store: Store, job_id: str) -> list[Record]:
    """The launch records of a campaign, by start."""
    campaign = f"campaigns/{job_id}"
    keys = [f"{campaign}/{arm}/{name}" for arm in store.list(campaign) for name in store.list(f"{campaign}/{arm}")]
    records = [store.read_json(key) for key in keys if key.endswith(".json")]
    return sorted((record for record in records if record), key=lambda record: (record["started_at"], record["pid"]))


def was_killed(record: Record) -> bool:
    """Whether the record says `running` but its process, on this machine, is gone."""
    if record["status"] != "running" or record["host"] != socket.gethostname():
        return False
    return not Path(f"/proc/{record['pid']}").exists()


def failure_sentence(record: Record) -> str:
    """Which step failed and why."""
    where = step_name(record)
    if record["status"] == "running":
        return f"{where}: its process was killed (out of memory?)"
    return f"{where}: {record.get('reason') or 'no reason recorded'}"


def step_name(record: Record) -> str:
    """The step, with its arm where it has one."""
    return record["step"] if record["arm"] == CAMPAIGN else f"{record['step']} {record['arm']}"


class Display:
    """Shows launch records as they change; bars only where the console is a terminal."""

    def __init__(self, console: Console, progress: Path):
        self._console = console
        self._folder = progress
        self._printed: set[tuple[str, str]] = set()
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> "Display":
        if self._console.is_terminal:
            columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
            state = TextColumn("{task.fields[state]}")
            self._bars = Progress(*columns, state, console=self._console, transient=True, refresh_per_second=4)
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    def show(self, records: Sequence[Record]) -> None:
        """Print what is newly finished, and bring the bars to the steps that run."""
        for record in records:
            place = (record["arm"], record["step"])
            if place not in self._printed and (record["status"] != "running" or was_killed(record)):
                self._printed.add(place)
                self._console.print(finished_line(record), highlight=False, soft_wrap=True)
        if self._bars is not None:
            running = [record for record in records if record["status"] == "running" and not was_killed(record)]
            pids = {escape(step_name(record)): record["pid"] for record in running}
            self._move(self._bars, pids or {"starting the next step": None})

    def _move(self, bars: Progress, pids: dict[str, int | None]) -> None:
        for label in set(self._tasks) - set(pids):
            bars.remove_task(self._tasks.pop(label))
        for label, pid in pids.items():
            if label not in self._tasks:
                self._tasks[label] = bars.add_task(label, total=None, state="")
            if pid is not None and (state := self._progress(pid)):
                counted = escape(f"{state['done']}/{state['total']} {state['note']}")
                bars.update(self._tasks[label], total=state["total"], completed=state["done"], state=counted)

    def _progress(self, pid: int) -> dict[str, Any] | None:
        try:
            return json.loads(progress_file(self._folder, pid).read_text())
        except (OSError, ValueError):
            return None


def finished_line(record: Record) -> str:
    """One line on a step that ended: step, arm, how, short result, seconds."""
    if record["status"] == "succeeded":
        mark, text = "[green]done  [/green]", str(record.get("result", ""))
    else:
        mark, text = "[red]failed[/red]", failure_sentence(record).split(": ", 1)[1]
    seconds = record.get("seconds")
    duration = "found finished" if record.get("recognised") else f"{seconds:.0f} s" if seconds is not None else ""
    parts = [part for part in (escape(text), duration) if part]
    return f"{mark} {escape(step_name(record)):<28} {', '.join(parts)}"
