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

from minio import MinioAdmin
from minio.error import MinioAdminException

from roboimi.command_line import run_command
from roboimi.errors import ConfigError, StoreAccessError
from roboimi.storage.http_client import make_http_client
from roboimi.storage.s3_client import S3Client
from roboimi.storage.s3_endpoint import endpoint_from_environment
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
    client = S3Client(endpoint_from_environment(environment), bucket)
    client.call("making the bucket", lambda minio: minio.bucket_exists(bucket) or minio.make_bucket(bucket))
    for role, (key, secret) in users.items():
        _administer(client, f"adding the policy of the {role}", "policy_add", f"roboimi-{role}", policy=documents[role])
        _administer(client, f"adding the user {key}", "user_add", key, secret)
        _attach(client, f"roboimi-{role}", key)
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


def _administer(client: S3Client, what: str, request: str, *arguments: Any, **options: Any) -> str:
    """One request to the server's administration, with the patience of the store's."""
    endpoint = client.endpoint
    admin = MinioAdmin(
        endpoint=endpoint.host,
        credentials=endpoint.credentials,
        region=endpoint.region,
        secure=endpoint.secure,
        http_client=make_http_client(endpoint.ca_file),
    )
    try:
        return client.call(what, lambda _: getattr(admin, request)(*arguments, **options))
    except MinioAdminException as error:
        raise StoreAccessError(f"{endpoint.url} refuses {what}: {_reason(error)}.") from error


def _attach(client: S3Client, policy: str, user: str) -> None:
    """Let the user have this policy and no other."""
    what = f"attaching policies to {user}"
    has = json.loads(_administer(client, what, "user_info", user)).get("policyName", "").split(",")
    if others := [name for name in has if name and name != policy]:
        _administer(client, what, "detach_policy", others, user)
    if policy not in has:
        _administer(client, what, "attach_policy", [policy], user)


def _reason(error: MinioAdminException) -> str:
    """What the server says, without the rest of its answer."""
    try:
        return str(json.loads(str(error).partition("Body: ")[2])["Message"]).rstrip(".")
    except (ValueError, KeyError, TypeError):
        return str(error)


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
