"""`roboimi checkpoints list|verify|fetch|gc`: what is in a store, whether it is whole, out of it, and less of it."""

import argparse
import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from roboimi.errors import CheckpointError, ConfigError
from roboimi.storage.atomic import writing
from roboimi.storage.store import Store, open_store
from roboimi.vla.training.checkpoint import Checkpoints
from roboimi.vla.training.latest import LATEST
from roboimi.vla.training.manifest import MANIFEST, Damaged
from roboimi.vla.training.reader import CheckpointReader
from roboimi.vla.training.records import RESULT, TRAINING
from roboimi.vla.training.retention import CHECKPOINT_NAME

TRAININGS = "trainings"
SHOWN_DIGITS = 12
"""Of a training's key in a table; any unambiguous beginning names it."""


@dataclass(frozen=True)
class Found:
    """One checkpoint as a table shows it.

    Attributes:
        name: of the checkpoint.
        state: `committed`, `verified`, `unfinished`, or `damaged` with what is wrong.
        manifest: None where it is unfinished or cannot be read.
        latest: whether LATEST names it.
    """

    name: str
    state: str
    manifest: dict[str, Any] | None
    latest: bool

    @property
    def bytes(self) -> int:
        """Of all its files; 0 where that is not known."""
        return sum(entry["bytes"] for entry in self.manifest["files"].values()) if self.manifest else 0


def add_checkpoints_commands(commands: argparse._SubParsersAction) -> None:
    """Add `checkpoints` with its subcommands to the parser of all commands."""
    group = commands.add_parser("checkpoints", help="list, verify, fetch and clean up a store's checkpoints")
    actions = group.add_subparsers(required=True, metavar="COMMAND")
    for name, command, about in (
        ("list", _list, "steps, sizes and ages; without TRAINING: one line a training"),
        ("verify", _verify, "compare every byte with what was committed"),
        ("fetch", _fetch, "copy a verified checkpoint into a folder"),
        ("gc", _gc, "remove checkpoints that enough newer, verified ones outrank"),
    ):
        parser = actions.add_parser(name, help=about)
        parser.add_argument("store", metavar="STORE", help="a folder, or s3://bucket/prefix")
        parser.add_argument("training", nargs="?", metavar="TRAINING", help="its key, or how the key begins")
        parser.set_defaults(command=command)
        if name == "fetch":
            parser.add_argument("--checkpoint", metavar="NAME", help="default: the newest one that is whole")
            parser.add_argument("--to", type=Path, metavar="FOLDER", help="default: the checkpoint's name")
        if name == "gc":
            parser.add_argument("--keep", type=int, default=3, metavar="N", help="newest verified ones (default: 3)")
            parser.add_argument("--dry-run", action="store_true", help="only say what would be removed")


def _list(options: argparse.Namespace) -> int:
    store, console = _open(options.store), Console()
    if options.training is None and len(_chosen(store, None)) != 1:
        console.print(_trainings_table(store))
        return 0
    for training in _chosen(store, options.training):
        console.print(_checkpoints_table(training, _found(store, training)))
    return 0


def _verify(options: argparse.Namespace) -> int:
    damaged = 0
    console = Console()
    with _bytes_from_the_store():
        store = _open(options.store)
        for training in _chosen(store, options.training):
            found = _verified(store, training)
            console.print(_checkpoints_table(training, found))
            damaged += sum(item.state.startswith("damaged") for item in found)
    if damaged:
        raise CheckpointError(
            f"{damaged} checkpoint{'s are' if damaged > 1 else ' is'} damaged in {store.uri}: trainings go back to the "
            "one before by themselves; `roboimi checkpoints gc` removes what is damaged."
        )
    return 0


def _fetch(options: argparse.Namespace) -> int:
    store = _open(options.store)
    chosen = _chosen(store, options.training)
    if len(chosen) != 1:
        raise ConfigError(f"{store.uri} has {len(chosen)} trainings: name one, as `roboimi checkpoints list` shows it.")
    (training,) = chosen
    checkpoints = CheckpointReader(store, training)
    name = options.checkpoint or _newest_whole(checkpoints, training)
    if not CHECKPOINT_NAME.fullmatch(name):
        raise ConfigError(f"{name!r} is no checkpoint's name: choose one that `roboimi checkpoints list` shows.")
    target = (options.to or Path(name)).expanduser()
    if target.exists():
        raise ConfigError(f"{target} is there already: name another folder with --to.")
    try:
        manifest = checkpoints.manifest(name)
        if manifest is None:
            raise Damaged("it was never committed")
        with _bar(f"fetch {name}", _size(manifest)) as bar:
            checkpoints.verify(name, bar)
    except Damaged as damage:
        raise CheckpointError(f"{training}/checkpoints/{name} is damaged ({damage}): fetch another one.") from damage
    source = store.fetch(checkpoints.prefix(name), [*manifest["files"], MANIFEST])
    with writing(target):
        target.mkdir(parents=True)
        try:
            for file in (*manifest["files"], MANIFEST):
                shutil.copyfile(source / file, target / file)
        except OSError:
            shutil.rmtree(target, ignore_errors=True)
            raise
    print(target)
    return 0


def _gc(options: argparse.Namespace) -> int:
    if options.keep < 1:
        raise ConfigError(f"--keep {options.keep} would remove every checkpoint: give 1 or more.")
    store, console = _open(options.store), Console()
    freed = removed = 0
    for training in _chosen(store, options.training):
        # Nothing is removed because of a newer one that was not read to its last byte.
        checkpoints = Checkpoints(store, training, options.keep, epoch=-1)
        found = _verified(store, training, checkpoints, most=options.keep)
        sizes = {item.name: item.bytes for item in found}
        for name in checkpoints.removable(note=not options.dry_run):
            what = "would remove" if options.dry_run else "removed"
            console.print(f"{what} {training}/checkpoints/{name}", highlight=False, soft_wrap=True)
            if not options.dry_run:
                checkpoints.remove(name)
            removed, freed = removed + 1, freed + sizes.get(name, 0)
    what = "would free" if options.dry_run else "freed"
    console.print(f"{removed} checkpoint{'' if removed == 1 else 's'}, {what} {_megabytes(freed)}", highlight=False)
    return 0


def _open(uri: str) -> Store:
    """The store at `uri`, which has to be there: a command that reads makes no folders."""
    if "://" not in uri and not Path(uri).expanduser().is_dir():
        raise ConfigError(f"There is no store at {uri}: give the folder or s3:// URI that trainings were written to.")
    return open_store(uri)


@contextlib.contextmanager
def _bytes_from_the_store() -> Iterator[None]:
    """Within the block an object store is read itself, not the copies of it that this machine keeps."""
    with tempfile.TemporaryDirectory(prefix="roboimi-verify-") as folder:
        before = os.environ.get("ROBOIMI_CACHE")
        os.environ["ROBOIMI_CACHE"] = folder
        try:
            yield
        finally:
            os.environ.pop("ROBOIMI_CACHE")
            if before is not None:
                os.environ["ROBOIMI_CACHE"] = before


def _trainings(store: Store) -> list[str]:
    return [f"{TRAININGS}/{key}" for key in store.list(TRAININGS)]


def _chosen(store: Store, wanted: str | None) -> list[str]:
    """The trainings that a beginning of a key means; all without one."""
    there = _trainings(store)
    if not there:
        raise CheckpointError(f"{store.uri} has no trainings: see that it is the store that was trained into.")
    if wanted is None:
        return there
    start = wanted.removeprefix(f"{TRAININGS}/").rstrip("/")
    matching = [training for training in there if training.startswith(f"{TRAININGS}/{start}")]
    if len(matching) != 1:
        what = "no training" if not matching else f"{len(matching)} trainings"
        raise ConfigError(
            f"{store.uri} has {what} whose key begins with {start!r}: `roboimi checkpoints list` shows them."
        )
    return matching


def _found(store: Store, training: str, checkpoints: CheckpointReader | None = None) -> list[Found]:
    """All checkpoints of a training, the newest first."""
    checkpoints = checkpoints or CheckpointReader(store, training)
    try:
        announced = set(checkpoints.announced())
    except Damaged:
        announced = set()
    found = []
    for name in sorted(checkpoints.names(), reverse=True):
        try:
            manifest = checkpoints.manifest(name)
            state = "committed" if manifest else "unfinished"
        except Damaged as damage:
            manifest, state = None, f"damaged: {damage}"
        found.append(Found(name, state, manifest, name in announced))
    return found


def _verified(
    store: Store, training: str, checkpoints: CheckpointReader | None = None, most: int | None = None
) -> list[Found]:
    """The same, once their bytes were compared; only until `most` of them were found whole."""
    checkpoints = checkpoints or CheckpointReader(store, training)
    found, whole = [], 0
    for item in _found(store, training, checkpoints):
        if item.manifest is not None and whole != most:
            try:
                with _bar(item.name, item.bytes) as bar:
                    checkpoints.verify(item.name, bar)
                item, whole = Found(item.name, "verified", item.manifest, item.latest), whole + 1
            except Damaged as damage:
                checkpoints.damaged.add(item.name)
                item = Found(item.name, f"damaged: {damage}", item.manifest, item.latest)
        found.append(item)
    return found


def _newest_whole(checkpoints: CheckpointReader, training: str) -> str:
    commits = checkpoints.commits()
    for name in sorted(commits, key=lambda name: (commits[name], name), reverse=True):
        with contextlib.suppress(Damaged):
            checkpoints.verify(name)
            return name
    raise CheckpointError(f"{training} has no checkpoint that is whole: train it, or bring one back from a copy.")


def _trainings_table(store: Store) -> Table:
    table = Table("training", "policy", "steps", "saved", "size", "newest", "state", title=store.uri)
    for training in _trainings(store):
        found = _found(store, training)
        committed = [item for item in found if item.manifest]
        record = store.read_json(f"{training}/{TRAINING}") or {}
        planned = record.get("config", {}).get("train", {}).get("steps", "?")
        latest = store.read_json(f"{training}/{LATEST}") or {}
        table.add_row(
            training.removeprefix(f"{TRAININGS}/")[:SHOWN_DIGITS],
            str(record.get("config", {}).get("backbone", {}).get("needs") or "blind"),
            f"{latest.get('step', 0):,} of {planned:,}" if isinstance(planned, int) else "?",
            str(len(committed)),
            _megabytes(sum(item.bytes for item in found)),
            _age(committed[0].manifest) if committed else "",
            "finished" if store.committed(training, RESULT) else "unfinished",
        )
    return table


def _checkpoints_table(training: str, found: list[Found]) -> Table:
    table = Table("checkpoint", "step", "size", "age", "state", title=training)
    for item in found:
        color = {"verified": "green", "committed": ""}.get(item.state, "red" if "damaged" in item.state else "yellow")
        table.add_row(
            item.name,
            f"{item.manifest['step']:,}" if item.manifest else "",
            _megabytes(item.bytes) if item.manifest else "",
            _age(item.manifest),
            f"{item.state}{', LATEST' if item.latest else ''}",
            style=color,
        )
    return table


@contextlib.contextmanager
def _bar(label: str, total: int) -> Iterator[Any]:
    """A bar of bytes on a terminal; gives what is told of each piece."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(label, total=total)
        yield lambda size: progress.update(task, advance=size)


def _size(manifest: dict[str, Any]) -> int:
    return sum(entry["bytes"] for entry in manifest["files"].values())


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def _age(manifest: dict[str, Any] | None) -> str:
    if not manifest or "written_at" not in manifest:
        return ""
    seconds = (datetime.now(UTC) - datetime.fromisoformat(manifest["written_at"])).total_seconds()
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
