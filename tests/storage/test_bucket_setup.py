"""The setup of an object store for campaigns on a real MinIO: what it makes, that it may run again, what it refuses."""

import io
import secrets

import pytest
from minio import MinioAdmin
from minio.credentials import StaticProvider
from minio.error import S3Error
from minio_server import CHECKOUT, free_port

from roboimi.errors import ConfigError, StoreAccessError, StoreUnavailableError
from roboimi.storage.bucket_setup import main, set_up_bucket
from roboimi.storage.s3_store import S3Store

POLICIES = CHECKOUT / "manifests/policies"


@pytest.fixture
def environment(minio_server):
    """Root's, with a new trainer."""
    return {
        "ROBOIMI_S3_ENDPOINT": minio_server.url,
        "MINIO_ROOT_USER": minio_server.key,
        "MINIO_ROOT_PASSWORD": minio_server.secret,
        "TRAINER_ACCESS_KEY": f"trainer-{secrets.token_hex(4)}",
        "TRAINER_SECRET_KEY": secrets.token_hex(12),
    }


@pytest.fixture
def uri():
    return f"s3://test-{secrets.token_hex(6)}/store"


def open_as_trainer(uri, environment, monkeypatch, tmp_path):
    for name in ("MINIO_ROOT_USER", "MINIO_ROOT_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ROBOIMI_S3_ENDPOINT", environment["ROBOIMI_S3_ENDPOINT"])
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", environment["TRAINER_ACCESS_KEY"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", environment["TRAINER_SECRET_KEY"])
    monkeypatch.setenv("ROBOIMI_CACHE", str(tmp_path / "cache"))
    return S3Store(uri)


def test_a_trainer_works_in_the_store_and_nowhere_else(environment, uri, monkeypatch, tmp_path, s3_environment):
    assert set_up_bucket(uri, "datasets", POLICIES, environment) == {"trainer": environment["TRAINER_ACCESS_KEY"]}
    store = open_as_trainer(uri, environment, monkeypatch, tmp_path)
    store.write_json("campaigns/j/a.json", {"n": 1})
    assert store.conditional
    with pytest.raises(StoreAccessError, match="no right"):
        S3Store(uri.replace("/store", "/private"))


def test_it_may_run_again_and_leaves_what_is_there(
    environment, uri, minio_server, monkeypatch, tmp_path, s3_environment
):
    set_up_bucket(uri, "datasets", POLICIES, environment)
    bucket = uri.split("/")[2]
    minio_server.client().put_object(bucket, "store/x", io.BytesIO(b"x"), 1)
    again = environment | {"TRAINER_SECRET_KEY": secrets.token_hex(12)}
    set_up_bucket(uri, "datasets", POLICIES, again)
    assert minio_server.client().get_object(bucket, "store/x").read() == b"x"
    assert open_as_trainer(uri, again, monkeypatch, tmp_path).list("campaigns") == []
    with pytest.raises(S3Error, match="does not match"):
        minio_server.client(environment["TRAINER_ACCESS_KEY"], environment["TRAINER_SECRET_KEY"]).list_buckets()


def test_a_right_that_somebody_added_is_taken_away(environment, uri, minio_server):
    set_up_bucket(uri, "datasets", POLICIES, environment)
    root = StaticProvider(minio_server.key, minio_server.secret)
    admin = MinioAdmin(endpoint=minio_server.host, credentials=root, region="us-east-1", secure=False)
    admin.attach_policy(["readwrite"], environment["TRAINER_ACCESS_KEY"])
    trainer = minio_server.client(environment["TRAINER_ACCESS_KEY"], environment["TRAINER_SECRET_KEY"])
    assert trainer.list_buckets()
    set_up_bucket(uri, "datasets", POLICIES, environment)
    with pytest.raises(S3Error, match="Access Denied"):
        trainer.put_object(uri.split("/")[2], "private", io.BytesIO(b""), 0)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"TRAINER_SECRET_KEY": ""}, ConfigError, "belong together"),
        ({"TRAINER_ACCESS_KEY": "", "TRAINER_SECRET_KEY": ""}, ConfigError, "No role has a user"),
        (
            {"TRAINER_SECRET_KEY": "short"},
            StoreAccessError,
            r"refuses adding the user .*: The secret key is invalid\. [^{]*\.$",
        ),
        ({"MINIO_ROOT_PASSWORD": "wrong-password"}, StoreAccessError, "refuses making the bucket: "),
        ({"MINIO_ROOT_USER": ""}, StoreAccessError, "no key for the object store"),
    ],
)
def test_what_cannot_work_is_one_sentence(environment, uri, change, error, words):
    with pytest.raises(error, match=words) as raised:
        set_up_bucket(uri, "datasets", POLICIES, environment | change)
    assert environment["MINIO_ROOT_PASSWORD"] not in str(raised.value)


def test_a_store_is_never_a_whole_bucket(environment):
    with pytest.raises(ConfigError, match="no prefix"):
        set_up_bucket("s3://lab", "datasets", POLICIES, environment)


def test_the_policies_folder_is_named_where_it_is_wrong(environment, uri, tmp_path):
    with pytest.raises(ConfigError, match=r"trainer\.json cannot be read"):
        set_up_bucket(uri, "datasets", tmp_path, environment)


def test_a_server_that_is_not_there(environment, uri, monkeypatch):
    monkeypatch.setenv("ROBOIMI_STORE_PATIENCE", "0.1")
    nowhere = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(StoreUnavailableError, match="connection refused"):
        set_up_bucket(uri, "datasets", POLICIES, environment | {"ROBOIMI_S3_ENDPOINT": nowhere})


def test_the_command_says_who_is_what(environment, uri, monkeypatch, capsys, s3_environment):
    for name in s3_environment:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert main([uri, "--policies", str(POLICIES)]) == 0
    assert capsys.readouterr().out == f"{uri}: the user {environment['TRAINER_ACCESS_KEY']} is a trainer\n"
