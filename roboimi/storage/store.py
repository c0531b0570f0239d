"""The store: one protocol for a local folder and, behind the same calls, an object store.

A prefix is a `/`-separated name such as `trainings/3f2a…`. Results are written into `folder(prefix)` and become real
with `publish`, which writes one JSON document last: a prefix without that document was never finished and may be
written again. Small documents that change (LATEST, leases) are replaced by compare-and-swap on their version.
"""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlparse

from roboimi.errors import StoreError

Counter = Callable[[int], None]
"""Called with the number of bytes that a piece of a transfer has moved; from several threads."""

_SEGMENT = re.compile(r"[A-Za-z0-9._=-]{1,100}")


def ignore(moved: int) -> None:
    """The `Counter` of who does not want to know."""


@dataclass(frozen=True)
class Versioned:
    """A small document together with the version that a replacement has to name.

    Attributes:
        document: its content.
        version: opaque; an object store's entity tag, or the hash of a file's bytes. Equal bytes have equal versions,
            so a document that is compared and swapped holds something that never comes back, such as a counter.
    """

    document: dict[str, Any]
    version: str


class Store(Protocol):
    """What every backend offers. Names and prefixes are checked by `checked_prefix`.

    Attributes:
        uri: what `open_store` opens it by.
        conditional: whether `create` and `replace` tell two writers apart. Where an endpoint ignores the conditions
            they do not, and a layout is safe with one writer alone.
    """

    uri: str
    conditional: bool

    def folder(self, prefix: str) -> Path:
        """A local folder to write the files of `prefix` into; made if it is not there."""

    def publish(self, prefix: str, name: str, document: dict[str, Any]) -> dict[str, Any]:
        """Make all files of `folder(prefix)` durable in the store, then commit: `create` the document `name`.

        Returns:
            The committed document: the given one, or the one of whoever committed first.
        """

    def committed(self, prefix: str, name: str) -> dict[str, Any] | None:
        """The document that committed `prefix`, or None."""

    def fetch(self, prefix: str, names: Collection[str] | None = None, count: Counter = ignore) -> Path:
        """A local folder that holds the files of a committed `prefix`: those of `names` that are there, or all.

        It is for reading; in an object store's case it is a copy.
        """

    def send(self, files: Mapping[str, Path], digests: Mapping[str, str], count: Counter = ignore) -> None:
        """Bring files into the store that are never written again, several at a time; what is there is not sent again.

        Args:
            files: key -> file.
            digests: key -> hex SHA-256 of the file, which is believed.
            count: told of every byte that is done.
        """

    def sha256(self, keys: Collection[str], count: Counter = ignore) -> dict[str, str]:
        """Hex SHA-256 of what the store gives now for each key, read anew; keys without a file are left out."""

    def put(self, key: str, path: Path) -> None:
        """Write or replace a file that is no JSON document, such as a report or metrics, atomically."""

    def read_json(self, key: str) -> dict[str, Any] | None:
        """A small mutable document, or None where there is none."""

    def write_json(self, key: str, document: dict[str, Any]) -> None:
        """Write or replace a small mutable document, atomically, whoever wrote it last."""

    def read_versioned(self, key: str) -> Versioned | None:
        """A small mutable document with its version, or None where there is none."""

    def create(self, key: str, document: dict[str, Any]) -> Versioned | None:
        """Write a document that is not there yet; None: somebody else's is there."""

    def replace(self, key: str, document: dict[str, Any], version: str) -> Versioned | None:
        """Replace a document if it still has `version`; None: it has another by now, or is gone."""

    def list(self, prefix: str) -> list[str]:
        """The names directly below `prefix`, sorted; empty where there is nothing."""

    def remove(self, prefix: str, first: str) -> None:
        """Remove all under `prefix`, the document `first` before anything else.

        A commit goes first, so that a removal cut short leaves what was never finished, not what is damaged.
        """


def checked_prefix(prefix: str) -> str:
    """The prefix itself, once every segment is known to be harmless.

    Raises:
        StoreError: a segment is empty, longer than 100 characters, `.` or `..`, or has other characters than
            letters, digits, `.`, `_`, `=` and `-`.
    """
    for segment in prefix.split("/"):
        if not is_segment(segment):
            raise StoreError(f"Store key {prefix!r} has the part {segment!r}: use letters, digits and . _ = - only.")
    return prefix


def is_segment(name: str) -> bool:
    """Whether `name` can be one segment of a prefix."""
    return _SEGMENT.fullmatch(name) is not None and name not in {".", ".."}


def open_store(uri: str | Path) -> Store:
    """Open the store at `uri`: a path, `file://` and a path, or `s3://bucket/prefix`.

    Raises:
        StoreError: the scheme is not supported, or the folder cannot be made or written.
        StoreAccessError: the object store refuses, or the environment does not say how to reach it.
        StoreUnavailableError: the object store does not answer.
    """
    from roboimi.storage.folder_store import FolderStore

    text = str(uri)
    scheme = urlparse(text).scheme
    if scheme == "s3":
        from roboimi.storage.s3_store import S3Store

        return S3Store(text)
    if scheme == "file":
        return FolderStore(Path(urlparse(text).path))
    if scheme:
        raise StoreError(
            f"A store has the unsupported scheme {scheme!r}: give a folder, as in --store ./outputs/store, or "
            "s3://bucket/prefix."
        )
    return FolderStore(Path(text))
