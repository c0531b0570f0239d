"""Requests to one bucket: repeated while that can help, for as long as the patience lasts, then one sentence.

`minio` and `urllib3` raise some thirty kinds of error. Here they become three: what the caller asked about
(`NoSuchKey`, `PreconditionFailed` and the like, passed on as they are), `StoreUnavailableError` (nobody answered, or
not now) and `StoreAccessError` (somebody answered, and refuses).
"""

import logging
import os
import random
import ssl
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from minio import Minio
from minio.error import InvalidResponseError, MinioException, S3Error, ServerError
from urllib3.exceptions import HTTPError, NameResolutionError, SSLError

from roboimi.errors import ConfigError, StoreAccessError, StoreUnavailableError
from roboimi.storage.s3_endpoint import Endpoint

PATIENCE_VARIABLE = "ROBOIMI_STORE_PATIENCE"
"""Environment variable: for how many seconds after its first failure a request is repeated."""
PATIENCE_SECONDS = 60.0
FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 5.0

_ANSWERS = {"NoSuchKey", "NoSuchUpload", "PreconditionFailed", "NotModified"}
"""S3 error codes that answer a question of the caller."""

_PASSING = {
    "RequestTimeout",
    "OperationAborted",
    "ConditionalRequestConflict",
    "BadDigest",
    "XAmzContentSHA256Mismatch",
    "XAmzContentChecksumMismatch",
    "IncompleteBody",
    "Throttling",
    "TooManyRequests",
}
"""S3 error codes below HTTP status 500 that another attempt can cure; from 500 on nearly all are of that kind."""

_REFUSALS = {
    "NoSuchBucket": "the bucket is not there: create it, or correct --store",
    "InvalidAccessKeyId": "it does not know this access key: correct AWS_ACCESS_KEY_ID or MINIO_ACCESS_KEY",
    "SignatureDoesNotMatch": "this is not the access key's secret: correct AWS_SECRET_ACCESS_KEY or MINIO_SECRET_KEY",
    "AccessDenied": "the access key has no right to do this: give it one of the policies in manifests/policies",
    "AllAccessDisabled": "the account is disabled: use another access key",
    "RequestTimeTooSkewed": "this machine's clock differs from the server's by more than 15 minutes: set the clock",
    "ExpiredToken": "the session has expired: get new credentials",
    "InvalidTokenId": "it does not know this session: get new credentials, or unset AWS_SESSION_TOKEN",
    "AuthorizationHeaderMalformed": "it is in another region: set AWS_REGION",
    "PermanentRedirect": "the bucket is in another region: set AWS_REGION",
    "InvalidBucketName": "the bucket's name cannot be: correct --store",
    "XMinioStorageFull": "its disks are full: make room there",
    "QuotaExceeded": "the bucket's quota is used up: make room there",
    "EntityTooLarge": "the object is larger than it takes",
}

_NO_TLS = {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE"}

T = TypeVar("T")

_chance = random.SystemRandom()
"""Not the global generator: its state belongs to the training whose checkpoint may be under way."""

log = logging.getLogger(__name__)


class S3Client:
    """One bucket of an endpoint.

    Args:
        endpoint: where, and as whom.
        bucket: its name.
        patience: for how many seconds after its first failure a request is repeated; None: what the environment says.

    Attributes:
        patience: may be changed at any time.
    """

    def __init__(self, endpoint: Endpoint, bucket: str, patience: float | None = None):
        self.endpoint, self.bucket = endpoint, bucket
        self.patience = _patience() if patience is None else patience
        self._lock = threading.Lock()
        self._minio: tuple[int, Minio] | None = None

    @property
    def minio(self) -> Minio:
        """This process's client: its connections cannot be shared with a forked process."""
        with self._lock:
            if self._minio is None or self._minio[0] != os.getpid():
                self._minio = (os.getpid(), self.endpoint.connect())
            return self._minio[1]

    def __getstate__(self) -> dict[str, object]:
        return {"endpoint": self.endpoint, "bucket": self.bucket, "patience": self.patience}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__init__(**state)

    def call(self, what: str, request: Callable[[Minio], T], *, patience: float | None = None) -> T:
        """Make a request, again and again while that can help.

        Args:
            what: what it does, for the sentence: "reading trainings/x/LATEST.json".
            request: makes it; may be called several times, also after an earlier one took effect unseen.
            patience: for this request alone.

        Raises:
            S3Error: an answer: there is no such key, or a condition does not hold.
            StoreUnavailableError: no answer within the patience.
            StoreAccessError: refused.
        """
        patience = self.patience if patience is None else patience
        give_up_at, pause = None, FIRST_PAUSE_SECONDS
        while True:
            try:
                return request(self.minio)
            except (MinioException, HTTPError, OSError) as error:
                if isinstance(error, S3Error) and error.code in _ANSWERS:
                    raise
                if refusal := self._refusal(error):
                    raise StoreAccessError(f"The object store {self._where} refuses {what}: {refusal}.") from error
                if not _is_passing(error):
                    raise
                now = time.monotonic()
                give_up_at = now + patience if give_up_at is None else give_up_at
                if now + pause > give_up_at:
                    raise StoreUnavailableError(
                        f"The object store {self._where} did not take part in {what} for {patience:g} s "
                        f"({_reason(error)}): see that it runs and can be reached, then run the same command again."
                    ) from error
                log.debug("%s: %s; again in %.1f s", what, _reason(error), pause)
            # Spread, so that many clients do not come back at the same moment.
            time.sleep(pause * _chance.uniform(0.5, 1.0))
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    @property
    def _where(self) -> str:
        return f"{self.endpoint.url}/{self.bucket}"

    def _refusal(self, error: Exception) -> str | None:
        """Why trying again cannot help, or None where it can."""
        if isinstance(error, S3Error):
            busy = error.response.status >= 500 and error.code not in _REFUSALS
            if busy or error.code in _PASSING:
                return None
            return _REFUSALS.get(str(error.code)) or f"refused with {error.code} ({error.message})"
        cause = _innermost(error)
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"its certificate is not trusted ({cause.verify_message}): name the CA file in AWS_CA_BUNDLE"
        if isinstance(cause, ssl.SSLError) and cause.reason in _NO_TLS:
            return "it does not speak TLS: write http:// in the endpoint"
        if isinstance(error, InvalidResponseError) and error._code < 500:
            if "HTTPS server" in str(error._body):
                return "it speaks TLS: write https:// in the endpoint"
            return f"it does not answer as an object store (HTTP status {error._code}): correct the endpoint"
        return None


def _patience() -> float:
    text = os.environ.get(PATIENCE_VARIABLE, str(PATIENCE_SECONDS))
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise ConfigError(f"{PATIENCE_VARIABLE}={text!r} is no number of seconds: set it to one, such as 60.")
    return seconds


def _is_passing(error: Exception) -> bool:
    if isinstance(error, S3Error | ServerError | InvalidResponseError | HTTPError):
        return True
    # Of the operating system's, those about the network; a full disk under a download is none of them.
    return isinstance(error, ConnectionError | TimeoutError | ssl.SSLError)


def _innermost(error: BaseException) -> BaseException:
    """The exception that it began with: urllib3 wraps several times."""
    while True:
        inner = getattr(error, "reason", None)
        inner = inner if isinstance(inner, BaseException) else error.__cause__ or error.__context__
        if isinstance(error, ssl.SSLError) or not isinstance(inner, BaseException):
            return error
        error = inner


def _reason(error: Exception) -> str:
    """A few words; never the request itself."""
    if isinstance(error, S3Error):
        return str(error.code)
    if isinstance(error, ServerError):
        return f"HTTP status {error.status_code}"
    if isinstance(error, InvalidResponseError):
        return f"HTTP status {error._code}"
    cause = _innermost(error)
    if isinstance(error, NameResolutionError) or isinstance(getattr(error, "reason", None), NameResolutionError):
        return "its name cannot be resolved"
    if isinstance(cause, ConnectionRefusedError):
        return "connection refused"
    if isinstance(cause, TimeoutError) or "timed out" in str(cause).lower():
        return "no answer in time"
    if isinstance(cause, SSLError | ssl.SSLError):
        return "the TLS connection broke"
    return getattr(cause, "strerror", None) or type(cause).__name__
