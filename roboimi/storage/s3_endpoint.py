"""Which object store, and as whom: from the environment alone, under MinIO's names or AWS's.

| what | variables, the first that is set |
|---|---|
| endpoint | `ROBOIMI_S3_ENDPOINT`, `MINIO_ENDPOINT`, `AWS_ENDPOINT_URL_S3`, `AWS_ENDPOINT_URL`; none: AWS itself |
| key | `AWS_ACCESS_KEY_ID`, `MINIO_ACCESS_KEY`, `MINIO_ROOT_USER`; MinIO's first if `MINIO_ENDPOINT` is set |
| secret | the variable that belongs to the key's |
| session | `AWS_SESSION_TOKEN` with AWS's key |
| region | `AWS_REGION`, `AWS_DEFAULT_REGION`, `MINIO_REGION`; none: us-east-1, which MinIO takes |
| certificates | `AWS_CA_BUNDLE`, `SSL_CERT_FILE` |

Without a key, a role of the pod or machine is used where `AWS_WEB_IDENTITY_TOKEN_FILE` or
`AWS_CONTAINER_CREDENTIALS_*` say that there is one.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from minio import Minio
from minio.credentials import IamAwsProvider, Provider, StaticProvider

from roboimi.errors import StoreAccessError
from roboimi.storage.http_client import make_http_client

ENDPOINT_VARIABLES = ("ROBOIMI_S3_ENDPOINT", "MINIO_ENDPOINT", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
REGION_VARIABLES = ("AWS_REGION", "AWS_DEFAULT_REGION", "MINIO_REGION")
CA_VARIABLES = ("AWS_CA_BUNDLE", "SSL_CERT_FILE")
_AWS_KEYS = (("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),)
_MINIO_KEYS = (("MINIO_ACCESS_KEY", "MINIO_SECRET_KEY"), ("MINIO_ROOT_USER", "MINIO_ROOT_PASSWORD"))
_ROLE_VARIABLES = (
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)


@dataclass(frozen=True)
class Endpoint:
    """An object store as this process reaches it.

    Attributes:
        host: `name:port`, or the name alone.
        secure: whether it is reached by TLS.
        region: what requests are signed for.
        credentials: never shown.
        ca_file: certificates to trust, or None.
    """

    host: str
    secure: bool
    region: str
    credentials: Provider = field(repr=False, compare=False)
    ca_file: str | None = None

    @property
    def url(self) -> str:
        """As a person writes it."""
        return f"{'https' if self.secure else 'http'}://{self.host}"

    def connect(self) -> Minio:
        """A client for this process; it must not be used in a forked one."""
        return Minio(
            self.host,
            secure=self.secure,
            region=self.region,
            credentials=self.credentials,
            http_client=make_http_client(self.ca_file),
        )


def endpoint_from_environment(environment: Mapping[str, str] | None = None) -> Endpoint:
    """Read the endpoint and the credentials.

    Raises:
        StoreAccessError: there is no key, the endpoint is no URL, or the certificates' file is not there.
    """
    environment = os.environ if environment is None else environment
    region = _first(environment, REGION_VARIABLES)[1] or "us-east-1"
    name, url = _first(environment, ENDPOINT_VARIABLES)
    host, secure = _host(name, url) if url else (f"s3.{region}.amazonaws.com", True)
    ca_name, ca_file = _first(environment, CA_VARIABLES)
    if ca_file and not Path(ca_file).is_file():
        raise StoreAccessError(f"{ca_name}={ca_file} is no file: correct the path of the certificates, or unset it.")
    keys = (*_MINIO_KEYS, *_AWS_KEYS) if name == "MINIO_ENDPOINT" else (*_AWS_KEYS, *_MINIO_KEYS)
    return Endpoint(host, secure, region, _credentials(environment, keys), ca_file or None)


def _host(name: str, url: str) -> tuple[str, bool]:
    parts = urlsplit(url.strip())
    # What is wrong is said without the text itself: a URL can hold a password.
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise StoreAccessError(f"{name} has to begin with http:// or https://, as in http://localhost:9000.")
    if parts.username is not None or parts.path.strip("/") or parts.query or parts.fragment:
        raise StoreAccessError(f"{name} has to be scheme, host and port alone, as in http://localhost:9000.")
    try:
        port = parts.port
    except ValueError as error:
        raise StoreAccessError(f"{name} has a port that is no number up to 65535: correct it.") from error
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return (f"{host}:{port}" if port else host), parts.scheme == "https"


def _credentials(environment: Mapping[str, str], keys: tuple[tuple[str, str], ...]) -> Provider:
    for key_name, secret_name in keys:
        key, secret = environment.get(key_name), environment.get(secret_name)
        if not key:
            continue
        if not secret:
            raise StoreAccessError(f"{key_name} is set and {secret_name} is not: set both, or neither.")
        token = environment.get("AWS_SESSION_TOKEN") if key_name.startswith("AWS_") else None
        return StaticProvider(key, secret, token or None)
    if any(environment.get(name) for name in _ROLE_VARIABLES):
        return IamAwsProvider()
    raise StoreAccessError(
        "There is no key for the object store: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
        "MINIO_ACCESS_KEY and MINIO_SECRET_KEY."
    )


def _first(environment: Mapping[str, str], names: tuple[str, ...]) -> tuple[str, str]:
    """Name and value of the first variable that is set."""
    return next(((name, environment[name]) for name in names if environment.get(name)), ("", ""))
