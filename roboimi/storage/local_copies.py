"""Where an object store's files lie on this machine: those being written, and copies of those that were read.

    $ROBOIMI_CACHE/stores/<bucket>-<hash of endpoint and prefix>/
        spool/<prefix>/@/…      files of `folder(prefix)`; no key has an @, so one prefix never lies inside another's
        fetched/<key>           copies, each with a note .<name>.note of what it is a copy of

A copy is used again only if it is of the object that the store has now, and has its bytes. The cache may be removed
whenever nothing runs; the spool then loses what was not published.
"""

import contextlib
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from roboimi.storage.atomic import TEMPORARY_PREFIX, durable_temporary, writing
from roboimi.storage.keys import sha256_file

CACHE_VARIABLE = "ROBOIMI_CACHE"


@dataclass(frozen=True)
class ObjectFacts:
    """What is known of one object: its entity tag, its size, and the SHA-256 of its bytes ("" where nobody said it)."""

    etag: str
    bytes: int
    sha256: str = ""


def cache_root() -> Path:
    """The folder that `ROBOIMI_CACHE` names, else `~/.cache/roboimi`."""
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "roboimi"


class LocalCopies:
    """The folders of one store.

    Args:
        identity: what tells the store from every other: endpoint, bucket and prefix.
        name: a part of the folder's name that tells people which store it is.
    """

    def __init__(self, identity: str, name: str):
        digest = hashlib.sha256(identity.encode()).hexdigest()[:12]
        self.root = cache_root() / "stores" / f"{name}-{digest}"
        self._known_good: dict[Path, tuple[tuple[int, int, int], str]] = {}

    def spool(self, prefix: str) -> Path:
        """The folder that files of `prefix` are written into; made if it is not there."""
        path = self.root / "spool" / prefix / "@"
        with writing(path):
            path.mkdir(parents=True, exist_ok=True)
        return path

    def spooled(self, prefix: str) -> dict[str, Path]:
        """The finished files in the spool of `prefix` by their names below it; hidden ones are somebody's own."""
        folder = self.root / "spool" / prefix / "@"
        found = {path.relative_to(folder): path for path in sorted(folder.rglob("*")) if path.is_file()}
        return {
            name.as_posix(): path
            for name, path in found.items()
            if not any(part.startswith(".") for part in name.parts)
        }

    def fetched(self, key: str) -> Path:
        """Where the copy of an object, or of everything under a prefix, lies."""
        return self.root / "fetched" / key

    def has(self, key: str, facts: ObjectFacts) -> bool:
        """Whether there is a copy of exactly this object."""
        path = self.fetched(key)
        try:
            note = ObjectFacts(**json.loads(_note(path).read_text()))
            status = path.stat()
        except (OSError, ValueError, TypeError):
            return False
        if (note.etag, note.bytes) != (facts.etag, facts.bytes) or status.st_size != note.bytes:
            return False
        return self._sha256(path) == note.sha256

    def adopt(self, key: str, source: Path, facts: ObjectFacts) -> None:
        """Make a finished file the copy of an object: a second name of the same bytes where the disk allows it."""
        path = self.fetched(key)
        with writing(path), durable_temporary(self._room(path)) as temporary:
            temporary.unlink()
            try:
                os.link(source, temporary)
            except OSError:
                shutil.copyfile(source, temporary)
            os.replace(temporary, path)
            _write_note(path, facts)

    @contextlib.contextmanager
    def arriving(self, key: str) -> Iterator[Path]:
        """Give an empty file for an object that is being read; see `arrived`."""
        path = self._room(self.fetched(key))
        with durable_temporary(path) as temporary, writing(path):
            yield temporary

    def arrived(self, key: str, temporary: Path, facts: ObjectFacts) -> None:
        """The file that `arriving` gave is complete and verified."""
        path = self.fetched(key)
        with writing(path):
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
            _write_note(path, facts)
            self._known_good[path] = (_identity(path), facts.sha256)

    def forget(self, prefix: str) -> None:
        """Remove everything of a prefix from this machine."""
        for folder in (self.root / "spool" / prefix, self.fetched(prefix)):
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(folder)

    def _room(self, path: Path) -> Path:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _sha256(self, path: Path) -> str:
        """Computed once in this process for as long as the file is not touched."""
        identity = _identity(path)
        known = self._known_good.get(path)
        if known is None or known[0] != identity:
            known = self._known_good[path] = (identity, sha256_file(path))
        return known[1]


def _note(path: Path) -> Path:
    return path.with_name(f".{path.name}.note")


def _write_note(path: Path, facts: ObjectFacts) -> None:
    # Whole or not there, but not forced onto the disk: that would force the copy itself too, and a cache may be lost.
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{path.name}-{secrets.token_hex(4)}")
    temporary.write_text(json.dumps(asdict(facts)))
    os.replace(temporary, _note(path))


def _identity(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns
