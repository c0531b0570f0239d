"""A store in a local folder: `folder(prefix)` is the place itself, so nothing is ever copied."""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from roboimi.errors import StoreDamagedError, StoreError, StoreUnavailableError
from roboimi.storage.atomic import atomic_path, create_json, fsync, json_text, write_json_atomically, writing
from roboimi.storage.keys import sha256_file
from roboimi.storage.store import Counter, Versioned, checked_prefix, ignore

SECONDS_TO_LOCK = 20.0
"""How long a document's lock is waited for; it is held for about a millisecond."""


class FolderStore:
    """See `roboimi.storage.store.Store`. Names that begin with a dot are the store's own and are never listed."""

    conditional = True

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
        with writing(path):
            path.mkdir(parents=True, exist_ok=True)
        return path

    def publish(self, prefix: str, name: str, document: dict[str, Any]) -> dict[str, Any]:
        """See `Store.publish`."""
        folder = self.folder(prefix)
        for path in folder.rglob("*"):
            if path.is_file():
                fsync(path)
        if create_json(folder / checked_prefix(name), document):
            return document
        return json.loads((folder / name).read_text())

    def committed(self, prefix: str, name: str) -> dict[str, Any] | None:
        """See `Store.committed`."""
        return self.read_json(f"{prefix}/{name}")

    def fetch(self, prefix: str, names: Collection[str] | None = None, count: Counter = ignore) -> Path:
        """See `Store.fetch`; everything is here already, whatever the names."""
        path = self.root / checked_prefix(prefix)
        if not path.is_dir():
            raise StoreError(f"Store {self.uri} has nothing under {prefix}: run the step that makes it first.")
        return path

    def send(self, files: Mapping[str, Path], digests: Mapping[str, str], count: Counter = ignore) -> None:
        """See `Store.send`."""
        for key, path in files.items():
            target = self._place(key)
            if not target.is_file() or sha256_file(target) != digests[key]:
                with atomic_path(target) as temporary:
                    shutil.copyfile(path, temporary)
            count(target.stat().st_size)

    def sha256(self, keys: Collection[str], count: Counter = ignore) -> dict[str, str]:
        """See `Store.sha256`."""
        found = {}
        for key in keys:
            path = self.root / checked_prefix(key)
            if path.is_file():
                found[key] = sha256_file(path)
                count(path.stat().st_size)
        return found

    def put(self, key: str, path: Path) -> None:
        """See `Store.put`."""
        target = self._place(key)
        if path.absolute() != target:
            with atomic_path(target) as temporary:
                shutil.copyfile(path, temporary)

    def read_json(self, key: str) -> dict[str, Any] | None:
        """See `Store.read_json`."""
        found = self.read_versioned(key)
        return found.document if found else None

    def write_json(self, key: str, document: dict[str, Any]) -> None:
        """See `Store.write_json`."""
        write_json_atomically(self._place(key), document)

    def read_versioned(self, key: str) -> Versioned | None:
        """See `Store.read_versioned`."""
        path = self.root / checked_prefix(key)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            return Versioned(json.loads(content), _version(content))
        except ValueError as error:
            raise StoreDamagedError(
                f"{path} is not JSON ({error}): it is damaged; remove it to have it made again."
            ) from error

    def create(self, key: str, document: dict[str, Any]) -> Versioned | None:
        """See `Store.create`."""
        created = create_json(self._place(key), document)
        return Versioned(document, _version(json_text(document).encode())) if created else None

    def replace(self, key: str, document: dict[str, Any], version: str) -> Versioned | None:
        """See `Store.replace`."""
        path = self._place(key)
        with _locked(path):
            if not path.is_file() or _version(path.read_bytes()) != version:
                return None
            write_json_atomically(path, document)
        return Versioned(document, _version(json_text(document).encode()))

    def list(self, prefix: str) -> list[str]:
        """See `Store.list`."""
        path = self.root / checked_prefix(prefix)
        if not path.is_dir():
            return []
        return sorted(child.name for child in path.iterdir() if not child.name.startswith("."))

    def remove(self, prefix: str, first: str) -> None:
        """See `Store.remove`."""
        folder = self.root / checked_prefix(prefix)
        (folder / checked_prefix(first)).unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError):  # another remover was faster
            shutil.rmtree(folder)

    def _place(self, key: str) -> Path:
        """Where a document lies, with the folder around it."""
        path = self.root / checked_prefix(key)
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        return path


def _try_lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _version(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the kernel's lock that belongs to `path`: reading, comparing and renaming are then one act.

    Raises:
        StoreUnavailableError: somebody has held it for much longer than that takes, such as a process that was stopped
            just then.
    """
    handle = os.open(path.with_name(f".lock-{path.name}"), os.O_RDWR | os.O_CREAT, 0o644)
    try:
        give_up_at = time.monotonic() + SECONDS_TO_LOCK
        while not _try_lock(handle):
            if time.monotonic() > give_up_at:
                raise StoreUnavailableError(
                    f"{path} is being replaced by a process that does not move: find it with `fuser "
                    f"{path.with_name(f'.lock-{path.name}')}`, let it go on or end it, and run the same command again."
                )
            time.sleep(0.005)
        yield
    finally:
        os.close(handle)
