"""A store in an S3 bucket (MinIO or any other endpoint of that kind): see `roboimi.storage.store.Store`.

Files are written into a spool on this machine and sent when they are published; the commit goes last, on condition that
nobody else committed. Small documents that change are objects too, compared and swapped by their entity tags.
"""

import hashlib
import json
import logging
import re
import threading
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from minio import Minio
from minio.deleteobjects import DeleteObject
from minio.error import S3Error

from roboimi.errors import StoreAccessError, StoreDamagedError, StoreError
from roboimi.storage.atomic import json_text
from roboimi.storage.conditional import SHA256, ConditionalWriter, honours_conditions
from roboimi.storage.local_copies import LocalCopies, ObjectFacts
from roboimi.storage.s3_client import S3Client
from roboimi.storage.s3_endpoint import endpoint_from_environment
from roboimi.storage.store import Counter, Versioned, checked_prefix, ignore, is_segment
from roboimi.storage.transfer import Transfers

PROBE = ".conditional-writes"
"""The object that tells whether the server honours conditions; hidden from listings."""
SECONDS_TO_OPEN = 10.0
LONGEST_KEY = 1024
"""Bytes; S3's own limit."""

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_probed: dict[tuple[str, str, str], bool] = {}
_probing = threading.Lock()

log = logging.getLogger(__name__)


class S3Store:
    """See `roboimi.storage.store.Store`. Names that begin with a dot are the store's own and are never listed.

    Args:
        uri: `s3://bucket` or `s3://bucket/prefix`.

    Attributes:
        client: the bucket; its `patience` says how long a request is repeated.

    Raises:
        StoreAccessError: there are no credentials, or the endpoint refuses them or does not have the bucket.
        StoreUnavailableError: the endpoint does not answer.
    """

    def __init__(self, uri: str):
        bucket, self._prefix = split_uri(uri)
        self.uri = f"s3://{'/'.join(filter(None, (bucket, self._prefix)))}"
        self.client = S3Client(endpoint_from_environment(), bucket)
        self._copies = LocalCopies(f"{self.client.endpoint.url} {self.uri}", bucket)
        self._transfers = Transfers(self.client, self._copies)
        self.conditional = self._open()
        self._writer = ConditionalWriter(self.client, self.conditional)

    def __getstate__(self) -> dict[str, Any]:
        return {"uri": self.uri}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["uri"])

    def folder(self, prefix: str) -> Path:
        """See `Store.folder`."""
        return self._copies.spool(self._key(prefix))

    def publish(self, prefix: str, name: str, document: dict[str, Any]) -> dict[str, Any]:
        """See `Store.publish`."""
        body = json_text(document)  # a document that is no JSON is found before anything is sent
        self._send_spooled(prefix)
        key = f"{prefix}/{name}"
        if self._writer.write(self._key(key), body.encode(), None) is not None:
            return document
        return self.read_json(key)

    def _send_spooled(self, prefix: str) -> None:
        """Send the files of `folder(prefix)` that are not in the store yet."""
        files = {self._key(f"{prefix}/{name}"): path for name, path in self._copies.spooled(self._key(prefix)).items()}
        for key, facts in self._transfers.upload(files).items():
            self._copies.adopt(key, files[key], facts)

    def committed(self, prefix: str, name: str) -> dict[str, Any] | None:
        """See `Store.committed`."""
        return self.read_json(f"{prefix}/{name}")

    def fetch(self, prefix: str, names: Collection[str] | None = None, count: Counter = ignore) -> Path:
        """See `Store.fetch`. The folder may also hold what was fetched before."""
        root = self._key(prefix)
        if names is None:
            # An object of a name that no store gives is somebody else's; its name could lead out of the folder.
            objects = {key: facts for key, facts in self._objects(f"{root}/").items() if _is_key(key)}
        else:
            objects = self._transfers.facts(self._key(f"{prefix}/{name}") for name in names)
        if not objects and (names is None or not self.list(prefix)):
            raise StoreError(f"Store {self.uri} has nothing under {prefix}: run the step that makes it first.")
        self._transfers.download(objects, count=count)
        folder = self._copies.fetched(root)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def send(self, files: Mapping[str, Path], digests: Mapping[str, str], count: Counter = ignore) -> None:
        """See `Store.send`."""
        named = {self._key(key): path for key, path in files.items()}
        self._transfers.upload(named, digests={self._key(key): digests[key] for key in files}, count=count)

    def sha256(self, keys: Collection[str], count: Counter = ignore) -> dict[str, str]:
        """See `Store.sha256`."""
        named = {self._key(key): key for key in keys}
        return {named[key]: digest for key, digest in self._transfers.sha256(named, count=count).items()}

    def put(self, key: str, path: Path) -> None:
        """See `Store.put`."""
        self._transfers.upload({self._key(key): path}, again=True)

    def read_json(self, key: str) -> dict[str, Any] | None:
        """See `Store.read_json`."""
        found = self.read_versioned(key)
        return found.document if found else None

    def write_json(self, key: str, document: dict[str, Any]) -> None:
        """See `Store.write_json`."""
        name, body = self._key(key), json_text(document).encode()
        headers = {"Content-Type": "application/json", SHA256: hashlib.sha256(body).hexdigest()}
        self.client.call(
            f"writing {name}", lambda minio: minio._put_object(self.client.bucket, name, body, dict(headers))
        )

    def read_versioned(self, key: str) -> Versioned | None:
        """See `Store.read_versioned`."""
        name = self._key(key)

        def read(minio: Minio) -> tuple[bytes, str, str]:
            response = minio.get_object(self.client.bucket, name)
            try:
                headers = response.headers
                return response.read(), headers.get("etag", "").replace('"', ""), headers.get(SHA256, "")
            finally:
                response.close()
                response.release_conn()

        try:
            body, etag, digest = self.client.call(f"reading {name}", read)
        except S3Error:
            return None
        if digest and hashlib.sha256(body).hexdigest() != digest:
            raise StoreDamagedError(f"{self.uri}/{key} has other bytes than were written there: remove it.")
        try:
            return Versioned(json.loads(body), etag)
        except ValueError as error:
            raise StoreDamagedError(
                f"{self.uri}/{key} is not JSON ({error}): it is damaged; remove it to have it made again."
            ) from error

    def create(self, key: str, document: dict[str, Any]) -> Versioned | None:
        """See `Store.create`."""
        etag = self._writer.write(self._key(key), json_text(document).encode(), None)
        return Versioned(document, etag) if etag is not None else None

    def replace(self, key: str, document: dict[str, Any], version: str) -> Versioned | None:
        """See `Store.replace`."""
        etag = self._writer.write(self._key(key), json_text(document).encode(), version)
        return Versioned(document, etag) if etag is not None else None

    def list(self, prefix: str) -> list[str]:
        """See `Store.list`."""
        start = f"{self._key(prefix)}/"

        def read(minio: Minio) -> list[str]:
            return [item.object_name for item in minio.list_objects(self.client.bucket, prefix=start)]

        names = {name[len(start) :].rstrip("/") for name in self.client.call(f"listing {start}", read)}
        return sorted(name for name in names if is_segment(name) and not name.startswith("."))

    def remove(self, prefix: str, first: str) -> None:
        """See `Store.remove`."""
        commit, root = self._key(f"{prefix}/{first}"), self._key(prefix)
        self.client.call(f"removing {commit}", lambda minio: minio.remove_object(self.client.bucket, commit))
        keys = [DeleteObject(key) for key in self._objects(f"{root}/")]

        def remove(minio: Minio) -> list[Any]:
            return list(minio.remove_objects(self.client.bucket, keys))

        if failed := self.client.call(f"removing {root}", remove):
            raise StoreError(
                f"Store {self.uri} kept {failed[0].name} ({failed[0].code}): remove {prefix} again, or by hand."
            )
        self._copies.forget(root)

    def _objects(self, start: str) -> dict[str, ObjectFacts]:
        """Every object whose key begins with `start`."""

        def read(minio: Minio) -> dict[str, ObjectFacts]:
            found = minio.list_objects(self.client.bucket, prefix=start, recursive=True)
            return {item.object_name: ObjectFacts(item.etag.strip('"'), item.size) for item in found}

        return self.client.call(f"listing {start}", read)

    def _key(self, name: str) -> str:
        key = "/".join(filter(None, (self._prefix, checked_prefix(name))))
        if len(key) > LONGEST_KEY:
            raise StoreError(f"Store key {key[:40]}… is longer than {LONGEST_KEY} bytes: use shorter names.")
        return key

    def _open(self) -> bool:
        """See that the bucket is there and can be read; tells whether it honours conditions, asked once a process."""
        start = f"{self._prefix}/" if self._prefix else ""

        def look(minio: Minio) -> None:
            next(iter(minio.list_objects(self.client.bucket, prefix=start)), None)

        place = (self.client.endpoint.url, self.client.bucket, self._prefix)
        patience = min(SECONDS_TO_OPEN, self.client.patience)
        with _probing:
            if place not in _probed:
                self.client.call("opening the store", look, patience=patience)
                honoured = honours_conditions(self.client, f"{start}{PROBE}", patience=patience)
                if honoured is False:
                    log.warning(
                        "%s ignores conditions on writes (If-None-Match, If-Match): let only one process at a time "
                        "write to %s",
                        self.client.endpoint.url,
                        self.uri,
                    )
                _probed[place] = honoured is not False
            return _probed[place]


def _is_key(name: str) -> bool:
    return all(map(is_segment, name.split("/")))


def split_uri(uri: str) -> tuple[str, str]:
    """Bucket and prefix of a URI."""
    parts = urlsplit(uri)
    if "@" in parts.netloc or ":" in parts.netloc or parts.query or parts.fragment:
        raise StoreAccessError(
            "An s3:// URI has a bucket and a prefix alone: keys and the endpoint come from the environment, as in "
            "AWS_ACCESS_KEY_ID and AWS_ENDPOINT_URL."
        )
    bucket, prefix = parts.netloc, parts.path.strip("/")
    if not _BUCKET.fullmatch(bucket):
        raise StoreAccessError(f"{bucket!r} is no bucket's name: give s3://bucket/prefix.")
    return bucket, checked_prefix(prefix) if prefix else ""
