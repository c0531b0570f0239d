"""Prepares a MinIO server for campaigns: the bucket, the least-privilege policies and a user for each role.

    python -m roboimi.storage.bucket_setup s3://roboimi/store --datasets datasets --policies manifests/policies

Whatever is there already stays or is made what it should be, so it may run any number of times. The environment says
which server and as whom (`MINIO_ROOT_USER` and `MINIO_ROOT_PASSWORD` of the server, see
`roboimi.storage.s3_endpoint`), and which users there shall be: `TRAINER_ACCESS_KEY` and `TRAINER_SECRET_KEY`, likewise
`READER_...` and `GC_...`; a role whose variables are not set gets no user.
"""

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from minio import Minio, MinioAdmin
from minio.error import MinioAdminException, MinioException, S3Error
from urllib3.exceptions import HTTPError

from roboimi.command_line import run_command
from roboimi.errors import ConfigError, StoreAccessError, StoreUnavailableError
from roboimi.storage.http_client import make_http_client
from roboimi.storage.s3_endpoint import Endpoint, endpoint_from_environment
from roboimi.storage.s3_store import split_uri

ROLES = ("trainer", "reader", "gc")


def set_up_bucket(
    store: str, datasets: str, policies: Path, environment: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Make the bucket, and for each role with a user in the environment its policy and that user.

    Args:
        store: `s3://bucket/prefix` of the store.
        datasets: prefix of the datasets in the same bucket.
        policies: folder with `trainer.json` and so on, in which BUCKET, STORE and DATASETS stand for the names.
        environment: None: the process's own.

    Returns:
        The access key of each user, by role.

    Raises:
        ConfigError: the store has no prefix, a policy cannot be read, or no role has a user.
        StoreAccessError: the server refuses, or a key or secret is one that it does not take.
        StoreUnavailableError: the server does not answer.
    """
    environment = os.environ if environment is None else environment
    bucket, prefix = split_uri(store)
    if not prefix:
        raise ConfigError(f"{store} has no prefix, so policies would hold for the whole bucket: add one, as in /store.")
    users = {role: _user(role, environment) for role in ROLES}
    users = {role: user for role, user in users.items() if user is not None}
    if not users:
        raise ConfigError("No role has a user: set TRAINER_ACCESS_KEY and TRAINER_SECRET_KEY.")
    names = {"BUCKET": bucket, "STORE": prefix, "DATASETS": datasets.strip("/")}
    documents = {role: read_policy(policies / f"{role}.json", names) for role in users}
    endpoint = endpoint_from_environment(environment)
    try:
        _make_bucket(endpoint.connect(), bucket)
        admin = _admin(endpoint)
        for role, (key, secret) in users.items():
            name = f"roboimi-{role}"
            admin.policy_add(name, policy=documents[role])
            admin.user_add(key, secret)
            _attach(admin, name, key)
    except (S3Error, MinioAdminException) as error:
        raise StoreAccessError(
            f"{endpoint.url} refuses to be set up for {store} ({_reason(error)}): correct the key or secret it means."
        ) from error
    except (MinioException, HTTPError, OSError) as error:
        raise StoreUnavailableError(f"{endpoint.url} does not answer ({error}): is the server started?") from error
    return {role: key for role, (key, _) in users.items()}


def read_policy(path: Path, names: Mapping[str, str]) -> dict[str, Any]:
    """A policy with the names of a bucket and its prefixes in the place of the words that stand for them.

    Raises:
        ConfigError: the file is not there, or is no JSON.
    """
    try:
        text = path.read_text()
        for word, name in names.items():
            text = text.replace(word, name)
        return json.loads(text)
    except (OSError, ValueError) as error:
        raise ConfigError(f"The policy {path} cannot be read ({error}): name the folder of the policies.") from error


def _user(role: str, environment: Mapping[str, str]) -> tuple[str, str] | None:
    key, secret = (environment.get(f"{role.upper()}_{part}", "") for part in ("ACCESS_KEY", "SECRET_KEY"))
    if bool(key) != bool(secret):
        raise ConfigError(f"{role.upper()}_ACCESS_KEY and {role.upper()}_SECRET_KEY belong together: set both or none.")
    return (key, secret) if key else None


def _reason(error: S3Error | MinioAdminException) -> str:
    """What the server says, without the rest of its answer."""
    if isinstance(error, S3Error):
        return f"{error.code}: {error.message}"
    body = str(error).partition("Body: ")[2]
    try:
        return str(json.loads(body)["Message"])
    except (ValueError, KeyError, TypeError):
        return str(error)


def _make_bucket(client: Minio, bucket: str) -> None:
    if not client.bucket_exists(bucket):
        client.make_bucket(bucket)


def _admin(endpoint: Endpoint) -> MinioAdmin:
    return MinioAdmin(
        endpoint=endpoint.host,
        credentials=endpoint.credentials,
        region=endpoint.region,
        secure=endpoint.secure,
        http_client=make_http_client(endpoint.ca_file),
    )


def _attach(admin: MinioAdmin, policy: str, user: str) -> None:
    """Let the user have this policy and no other."""
    has = json.loads(admin.user_info(user)).get("policyName", "")
    others = [name for name in has.split(",") if name and name != policy]
    if others:
        admin.detach_policy(others, user)
    if policy not in has.split(","):
        admin.attach_policy([policy], user)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m roboimi.storage.bucket_setup", description=__doc__.split("\n")[0])
    parser.add_argument("store", metavar="s3://BUCKET/PREFIX")
    parser.add_argument("--datasets", default="datasets", metavar="PREFIX", help="of datasets (default: datasets)")
    parser.add_argument("--policies", type=Path, required=True, metavar="FOLDER")
    parser.set_defaults(command=_command)
    return run_command(parser, arguments)


def _command(options: argparse.Namespace) -> int:
    for role, key in set_up_bucket(options.store, options.datasets, options.policies).items():
        print(f"{options.store}: the user {key} is a {role}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
