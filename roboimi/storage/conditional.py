"""Writes under a condition: `If-None-Match: *` creates, `If-Match: <etag>` replaces, and a lost answer is no defeat.

`minio` 7.2 has no argument for conditions and turns such headers, given as metadata, silently into metadata: the object
is overwritten. So the request is made one level below. Two things can go wrong with a condition:

*The answer is lost.* The write took place, is repeated, and now the condition does not hold: the server says 412 to the
winner. So every write carries a nonce of its own in its metadata, and after a 412 the object's nonce decides. A
write whose fate stayed unknown (`StoreUnavailableError`) keeps its nonce for when the caller does it again.

*The server ignores conditions*, as some do without a word. `honours_conditions` finds out, and such a server is then
written to by reading first and checking afterwards, which is safe as long as there is one writer.
"""

import hashlib
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from minio import Minio
from minio.error import S3Error

from roboimi.errors import StoreAccessError, StoreUnavailableError
from roboimi.storage.s3_client import S3Client

NONCE = "x-amz-meta-writer"
SHA256 = "x-amz-meta-sha256"
_NO_ETAG = "0" * 32
"""The entity tag of no object: a write under it must be refused."""


class ConditionalWriter:
    """Creates and replaces whole small objects of one bucket.

    Attributes:
        conditional: whether the server honours conditions.
    """

    def __init__(self, client: S3Client, conditional: bool = True):
        self._client, self.conditional = client, conditional
        self._lock = threading.Lock()
        self._unknown: dict[tuple[str, str, str | None], str] = {}

    def write(self, key: str, body: bytes, etag: str | None) -> str | None:
        """Write `body` if the object has `etag`, or, with None, if there is no object.

        Returns:
            The new entity tag; None: the condition did not hold, and nothing was written. (A write whose answer was
            lost and that others have already replaced counts as one that did not hold: what is there now was decided
            in the knowledge of it.)

        Raises:
            StoreUnavailableError: whether it was written is not known; the same call again finds out.
            StoreAccessError: refused.
        """
        with self._nonce(key, body, etag) as nonce:
            if not self.conditional and self._etag(key) != etag:
                return None
            try:
                written = self._client.call(f"writing {key}", lambda minio: self._put(minio, key, body, etag, nonce))
            except S3Error as error:
                if error.code not in {"PreconditionFailed", "NoSuchKey"}:
                    raise
                return self._etag_of_own(key, nonce)
            if not self.conditional:
                return self._etag_of_own(key, nonce)
            return written

    def _put(self, minio: Minio, key: str, body: bytes, etag: str | None, nonce: str) -> str:
        condition = {"If-None-Match": "*"} if etag is None else {"If-Match": f'"{etag}"'}
        headers = {"Content-Type": "application/json", NONCE: nonce, SHA256: hashlib.sha256(body).hexdigest()}
        return minio._put_object(self._client.bucket, key, body, headers | (condition if self.conditional else {})).etag

    @contextmanager
    def _nonce(self, key: str, body: bytes, etag: str | None) -> Iterator[str]:
        write = (key, hashlib.sha256(body).hexdigest(), etag)
        with self._lock:
            nonce = self._unknown.pop(write, None) or secrets.token_hex(16)
        try:
            yield nonce
        except BaseException:
            with self._lock:
                self._unknown[write] = nonce
            raise

    def _etag_of_own(self, key: str, nonce: str) -> str | None:
        """The object's entity tag if the write with this nonce made it."""
        try:
            found = self._client.call(f"reading {key}", lambda minio: minio.stat_object(self._client.bucket, key))
        except S3Error:
            return None
        return found.etag if found.metadata.get(NONCE) == nonce else None

    def _etag(self, key: str) -> str | None:
        try:
            return self._client.call(f"reading {key}", lambda minio: minio.stat_object(self._client.bucket, key)).etag
        except S3Error:
            return None


def honours_conditions(client: S3Client, key: str, *, patience: float | None = None) -> bool | None:
    """Whether the server refuses writes whose condition does not hold; two requests.

    Args:
        client: of the bucket.
        key: an object for this purpose alone, written once.
        patience: see `S3Client.call`.

    Returns:
        None where writing is not allowed at all, so that the question does not arise.
    """

    def refused(headers: dict[str, str]) -> bool:
        body = b'{"purpose": "tells whether conditional writes are honoured"}\n'
        try:
            client.call(
                "opening the store",
                lambda minio: minio._put_object(client.bucket, key, body, dict(headers)),
                patience=patience,
            )
        except S3Error:
            return True
        return False

    create, replace = {"If-None-Match": "*"}, {"If-Match": f'"{_NO_ETAG}"'}
    try:
        # The first of all writes to this key is let through.
        return (refused(create) or refused(create)) and refused(replace)
    except StoreUnavailableError:
        raise
    except StoreAccessError as error:
        if getattr(error.__cause__, "code", None) == "AccessDenied":
            return None
        raise
