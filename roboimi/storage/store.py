"""The store: one protocol for a local folder and, behind the same calls, an object store.

A prefix is a `/`-separated name such as `trainings/3f2a…`. Results are written into `folder(prefix)` and become real
with `publish`, which writes one JSON document last: a prefix without that document was never finished and may be
written again.
"""

import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlparse

from roboimi.errors import StoreError

_SEGMENT = re.compile(r"[A-Za-z0-9._=-]{1,100}")


class Store(Protocol):
    """What every backend offers. Names and prefixes are checked by `checked_prefix`."""

    uri: str

    def folder(self, prefix: str) -> Path:
        """A local folder to write the files of `prefix` into; made if it is not there."""

    def publish(self, prefix: str, name: str, document: dict[str, Any]) -> dict[str, Any]:
        """Make all files of `folder(prefix)` durable, then commit: write `name` if it is not there yet.

        Returns:
            The committed document: the given one, or the one of whoever committed first.
        """

    def committed(self, prefix: str, name: str) -> dict[str, Any] | None:
        """The document that committed `prefix`, or None."""

    def fetch(self, prefix: str) -> Path:
        """A local folder that holds the files of a committed `prefix`."""

    def read_json(self, key: str) -> dict[str, Any] | None:
        """A small mutable document, or None where there is none."""

    def write_json(self, key: str, document: dict[str, Any]) -> None:
        """Write or replace a small mutable document, atomically."""

    def list(self, prefix: str) -> list[str]:
        """The names directly below `prefix`, sorted; empty where there is nothing."""


def checked_prefix(prefix: str) -> str:
    """The prefix itself, once every segment is known to be harmless.

    Raises:
        StoreError: a segment is empty, longer than 100 characters, `.` or `..`, or has other characters than
            letters, digits, `.`, `_`, `=` and `-`.
    """
    for segment in prefix.split("/"):
        if not _SEGMENT.fullmatch(segment) or segment in {".", ".."}:
            raise StoreError(f"Store key {prefix!r} has the part {segment!r}: use letters, digits and . _ = - only.")
    return prefix


def open_store(uri: str | Path) -> Store:
    """Open the store at `uri`: a path, or `file://` and a path.

    Raises:
        StoreError: the scheme is not supported, or the folder cannot be made or written.
    """
    text = str(uri)
    scheme = urlparse(text).scheme
    if scheme == "file":
        return FolderStore(Path(urlparse(text).path))
    if scheme:
        raise StoreError(
            f"Store {text!r} has the unsupported scheme {scheme!r}: give a folder, as in --store ./outputs/store."
        )
    return FolderStore(Path(text))


class FolderStore:
    """A store in a local folder: `folder(prefix)` is the place itself, so nothing is ever copied."""

    def __init__(self, root: Path):
        self.root = root.expanduser().absolute()
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"Store folder {self.root} cannot be made ({error.strerror}): choose another with --store."
            ) from error
        if not os.access(self.root, os.W_OK | os.X_OK):
            raise StoreError(
                f"Store folder {self.root} is not writable: choose another with --store, or change its owner."
            )
        self.uri = str(self.root)

    def folder(self, prefix: str) -> Path:
        """See `Store.folder`."""
        path = self.root / checked_prefix(prefix)
        path.mkdir(parents=True, exist_ok=True)
        return path

    def publish(self, prefix: str, name: str, document: dict[str, Any]) -> dict[str, Any]:
        """See `Store.publish`."""
        folder = self.folder(prefix)
        for path in folder.rglob("*"):
            if path.is_file():
                _fsync(path)
        temporary = _write_temporary(folder, document)
        try:
            os.link(temporary, folder / checked_prefix(name))
        except FileExistsError:
            return json.loads((folder / name).read_text())
        finally:
            temporary.unlink()
        _fsync(folder)
        return document

    def committed(self, prefix: str, name: str) -> dict[str, Any] | None:
        """See `Store.committed`."""
        return self.read_json(f"{prefix}/{name}")

    def fetch(self, prefix: str) -> Path:
        """See `Store.fetch`."""
        path = self.root / checked_prefix(prefix)
        if not path.is_dir():
            raise StoreError(f"Store {self.uri} has nothing under {prefix}: run the step that makes it first.")
        return path

    def read_json(self, key: str) -> dict[str, Any] | None:
        """See `Store.read_json`."""
        path = self.root / checked_prefix(key)
        try:
            return json.loads(path.read_text())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise StoreError(
                f"{path} is not JSON ({error}): it is damaged; remove it to have it made again."
            ) from error

    def write_json(self, key: str, document: dict[str, Any]) -> None:
        """See `Store.write_json`."""
        path = self.root / checked_prefix(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        os.replace(_write_temporary(path.parent, document), path)

    def list(self, prefix: str) -> list[str]:
        """See `Store.list`."""
        path = self.root / checked_prefix(prefix)
        return sorted(child.name for child in path.iterdir()) if path.is_dir() else []


def _write_temporary(folder: Path, document: dict[str, Any]) -> Path:
    """Write a document beside its final place, durable on return; the name starts with a dot."""
    text = json.dumps(document, indent=1, sort_keys=True, allow_nan=False) + "\n"
    handle, name = tempfile.mkstemp(prefix=".writing-", dir=folder)
    with os.fdopen(handle, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.chmod(name, 0o644)
    return Path(name)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
