"""Files to and from a bucket: several at a time, large ones in parts side by side, every byte under a hash.

Memory stays bounded by `PARTS_AT_ONCE` parts, however large the files. The server checks each part against the hash (or
over TLS the checksum) that is sent with it; the SHA-256 of the whole goes into the object's metadata, and what is
read is compared with it. A file that is there already with the same size and hash is not sent again.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from minio import Minio
from minio.datatypes import Part
from minio.error import S3Error

from roboimi.errors import StoreDamagedError, StoreError
from roboimi.storage.conditional import SHA256
from roboimi.storage.keys import sha256_file
from roboimi.storage.local_copies import LocalCopies, ObjectFacts
from roboimi.storage.s3_client import S3Client
from roboimi.storage.store import Counter, ignore

PART_BYTES = 16 << 20
"""Size of a part; larger for files that would need more than 10,000 of them."""
FILES_AT_ONCE = 8
PARTS_AT_ONCE = 6
MOST_PARTS = 10_000
_CHUNK_BYTES = 1 << 20

T = TypeVar("T")


class Transfers:
    """Moves files between this machine and one bucket."""

    def __init__(self, client: S3Client, copies: LocalCopies):
        self._client, self._copies = client, copies

    def upload(
        self,
        files: Mapping[str, Path],
        *,
        digests: Mapping[str, str] | None = None,
        again: bool = False,
        count: Counter = ignore,
    ) -> dict[str, ObjectFacts]:
        """Bring files into the bucket.

        Args:
            files: key -> file.
            digests: key -> SHA-256, where it is known and files do not change.
            again: also those that are there already with the same size and SHA-256.
            count: told of every byte, also of those that were there.

        Returns:
            key -> what lies there now.
        """
        known = digests or {}
        with _Workers() as workers:
            started = {
                key: workers.file(self._upload, key, path, known.get(key), again, count, workers)
                for key, path in files.items()
            }
            return {key: workers.result(future) for key, future in started.items()}

    def download(self, objects: Mapping[str, ObjectFacts], *, count: Counter = ignore) -> None:
        """Make `LocalCopies.fetched` hold these objects; those that it holds already are not read again.

        Raises:
            StoreDamagedError: an object does not have the hash that it was written with, or is gone meanwhile.
        """
        with _Workers() as workers:
            for future in [workers.file(self._download, key, objects[key], count, workers) for key in objects]:
                workers.result(future)

    def sha256(self, keys: Iterable[str], *, count: Counter = ignore) -> dict[str, str]:
        """Read objects to their ends, keeping nothing; gives the hash of each that is there."""
        with _Workers() as workers:
            started = {key: workers.file(self._sha256, key, count) for key in keys}
            found = {key: workers.result(future) for key, future in started.items()}
        return {key: digest for key, digest in found.items() if digest is not None}

    def facts(self, keys: Iterable[str]) -> dict[str, ObjectFacts]:
        """What lies under these keys; keys under which nothing lies are left out."""
        with _Workers() as workers:
            started = {key: workers.file(self._facts, key) for key in keys}
            found = {key: workers.result(future) for key, future in started.items()}
        return {key: facts for key, facts in found.items() if facts is not None}

    def _sha256(self, key: str, count: Counter) -> str | None:
        def read(minio: Minio) -> tuple[str, int]:
            digest, size = hashlib.sha256(), 0
            with _released(minio.get_object(self._client.bucket, key)) as response:
                for chunk in response.stream(_CHUNK_BYTES, decode_content=False):
                    digest.update(chunk)
                    size += len(chunk)
            return digest.hexdigest(), size

        try:
            digest, size = self._client.call(f"reading {key}", read)
        except S3Error:
            return None
        count(size)
        return digest

    def _facts(self, key: str) -> ObjectFacts | None:
        try:
            found = self._client.call(f"reading {key}", lambda minio: minio.stat_object(self._client.bucket, key))
        except S3Error:
            return None
        return ObjectFacts(found.etag, found.size, found.metadata.get(SHA256, ""))

    def _upload(
        self, key: str, path: Path, digest: str | None, again: bool, count: Counter, workers: "_Workers"
    ) -> ObjectFacts:
        size = path.stat().st_size
        there = self._facts(key) if digest and not again else None
        if there and (there.bytes, there.sha256) == (size, digest):
            count(size)
            return there
        if size <= PART_BYTES:
            # Read once: a file that somebody appends to meanwhile is hashed and sent as it was at one moment.
            body = path.read_bytes()
            digest, size = hashlib.sha256(body).hexdigest(), len(body)
        else:
            body, digest = None, digest or sha256_file(path)
        there = None if again else self._facts(key)
        if there and (there.bytes, there.sha256) == (size, digest):
            count(size)
            return there
        headers = {"Content-Type": "application/octet-stream", SHA256: digest}
        if body is None:
            self._upload_in_parts(key, path, size, headers, count, workers)
            etag = ""
        else:
            etag = self._client.call(
                f"writing {key}", lambda minio: minio._put_object(self._client.bucket, key, body, dict(headers))
            ).etag
            count(size)
        return ObjectFacts(etag, size, digest) if etag else self._own(key, size, digest)

    def _upload_in_parts(
        self, key: str, path: Path, size: int, headers: dict[str, str], count: Counter, workers: "_Workers"
    ) -> None:
        bucket = self._client.bucket
        upload = self._client.call(
            f"writing {key}", lambda minio: minio._create_multipart_upload(bucket, key, dict(headers))
        )
        try:
            parts = [
                workers.part(self._upload_part, key, path, upload, number, start, length, count)
                for number, (start, length) in enumerate(_ranges(size), start=1)
            ]
            done = [workers.result(part) for part in parts]
            try:
                self._client.call(
                    f"writing {key}", lambda minio: minio._complete_multipart_upload(bucket, key, upload, done)
                )
            except S3Error as error:
                # Completed already, and the answer was lost; whether it was is seen from the object.
                if error.code != "NoSuchUpload":
                    raise
        except BaseException:
            # The parts would lie there unseen; what cannot be taken away now is the bucket's lifecycle rule's to take.
            with suppress(StoreError, S3Error):
                self._client.call(
                    f"removing parts of {key}",
                    lambda minio: minio._abort_multipart_upload(bucket, key, upload),
                    patience=0,
                )
            raise

    def _upload_part(
        self, key: str, path: Path, upload: str, number: int, start: int, length: int, count: Counter
    ) -> Part:
        with open(path, "rb") as file:
            body = os.pread(file.fileno(), length, start)
        if len(body) != length:
            raise StoreError(f"{path} became shorter while it was sent: write it again under another name.")
        etag = self._client.call(
            f"writing {key}",
            lambda minio: minio._upload_part(self._client.bucket, key, body, None, upload, number),
        )
        count(length)
        return Part(number, etag)

    def _own(self, key: str, size: int, digest: str) -> ObjectFacts:
        there = self._facts(key)
        if there is None or (there.bytes, there.sha256) != (size, digest):
            raise StoreError(f"{key} was replaced or removed while it was written: let one writer at a time use it.")
        return there

    def _download(self, key: str, facts: ObjectFacts, count: Counter, workers: "_Workers") -> None:
        if self._copies.has(key, facts):
            count(facts.bytes)
            return
        with self._copies.arriving(key) as temporary:
            if facts.bytes > PART_BYTES:
                digest, promised = self._download_in_parts(key, facts, temporary, count, workers)
            else:
                digest, promised = self._download_whole(key, facts.etag, temporary)
                count(facts.bytes)
            if temporary.stat().st_size != facts.bytes or (promised and digest != promised):
                raise StoreDamagedError(
                    f"{key} in the store has other bytes than were written there (SHA-256 or size differ): remove it "
                    "and have it made again."
                )
            self._copies.arrived(key, temporary, ObjectFacts(facts.etag, facts.bytes, digest))

    def _download_whole(self, key: str, etag: str, target: Path) -> tuple[str, str]:
        """SHA-256 of what arrived, and the one it was written with ("" if nobody said)."""

        def read(minio: Minio) -> tuple[str, str]:
            response = minio.get_object(self._client.bucket, key, request_headers={"If-Match": f'"{etag}"'})
            digest = hashlib.sha256()
            with _released(response), open(target, "wb") as file:
                for chunk in response.stream(_CHUNK_BYTES, decode_content=False):
                    file.write(chunk)
                    digest.update(chunk)
            return digest.hexdigest(), response.headers.get(SHA256, "")

        return self._read(key, read)

    def _download_in_parts(
        self, key: str, facts: ObjectFacts, target: Path, count: Counter, workers: "_Workers"
    ) -> tuple[str, str]:
        """As `_download_whole`; what has come is hashed while the rest comes."""
        ranges = _ranges(facts.bytes)
        parts = [
            workers.part(self._download_range, key, facts.etag, target, start, length, count)
            for start, length in ranges
        ]
        digest, promised = hashlib.sha256(), ""
        # Unbuffered: a buffer would read ahead, into what has not come yet.
        with open(target, "rb", buffering=0) as file:
            for part, (start, length) in zip(parts, ranges, strict=True):
                promised = workers.result(part)
                while chunk := file.read(min(_CHUNK_BYTES, start + length - file.tell())):
                    digest.update(chunk)
        return digest.hexdigest(), promised

    def _download_range(self, key: str, etag: str, target: Path, start: int, length: int, count: Counter) -> str:
        """Write a piece of the object to its place; gives the SHA-256 of the whole that it was written with."""

        def read(minio: Minio) -> str:
            headers = {"If-Match": f'"{etag}"'}
            response = minio.get_object(self._client.bucket, key, start, length, request_headers=headers)
            with _released(response), open(target, "r+b", buffering=0) as file:
                file.seek(start)
                for chunk in response.stream(_CHUNK_BYTES, decode_content=False):
                    file.write(chunk)
            return response.headers.get(SHA256, "")

        promised = self._read(key, read)
        count(length)
        return promised

    def _read(self, key: str, read: Callable[[Minio], object]) -> object:
        try:
            return self._client.call(f"reading {key}", read)
        except S3Error as error:
            raise StoreDamagedError(
                f"{key} was replaced or removed while it was read ({error.code}): run the same command again."
            ) from error


class _Workers:
    """Threads for files, and others for parts: no part waits for a thread that a file holds."""

    def __init__(self):
        self._files = ThreadPoolExecutor(FILES_AT_ONCE, thread_name_prefix="store-file")
        self._parts = ThreadPoolExecutor(PARTS_AT_ONCE, thread_name_prefix="store-part")
        self._failure: BaseException | None = None

    def file(self, work: Callable[..., T], *arguments: object) -> "Future[T]":
        return self._files.submit(self._run, work, *arguments)

    def part(self, work: Callable[..., T], *arguments: object) -> "Future[T]":
        return self._parts.submit(self._run, work, *arguments)

    def result(self, future: "Future[T]") -> T:
        try:
            return future.result()
        except _Stopped:
            raise self._failure from None

    def _run(self, work: Callable[..., T], *arguments: object) -> T:
        if self._failure is not None:
            raise _Stopped
        try:
            return work(*arguments)
        except BaseException as error:
            # The first failure ends the whole transfer: what has not begun does not begin.
            self._failure = self._failure or error
            raise

    def __enter__(self) -> "_Workers":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        self._failure = self._failure or error
        self._files.shutdown(cancel_futures=error is not None)
        self._parts.shutdown(cancel_futures=error is not None)


class _Stopped(Exception):
    """This piece of a transfer did not begin, because another one failed."""


class _released:
    """Give a response's connection back, or drop it where the response was not read to its end."""

    def __init__(self, response):
        self._response = response

    def __enter__(self):
        return self._response

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if error is not None:
            self._response.close()
        self._response.release_conn()


def _ranges(size: int) -> list[tuple[int, int]]:
    """(start, length) of each part."""
    part = max(PART_BYTES, -(-size // MOST_PARTS))
    return [(start, min(part, size - start)) for start in range(0, size, part)]
