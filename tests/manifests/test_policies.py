"""The shipped policies allow what their roles need and nothing else: every verb on every place, on a real server."""

import io
import json
import secrets
from pathlib import Path

import pytest
from minio import MinioAdmin
from minio.credentials import StaticProvider
from minio.deleteobjects import DeleteObject
from minio.error import S3Error

from roboimi.errors import StoreAccessError
from roboimi.storage import s3_store
from roboimi.storage.s3_store import S3Store
from roboimi.vla.data.dataset_store import push_dataset
from roboimi.vla.data.manifest import resolve_dataset
from roboimi.vla.training.retention import SEEN, Retention

POLICIES = Path(__file__).resolve().parents[2] / "manifests/policies"
PLACES = {
    "checkpoint": "store/trainings/k/checkpoints/1/model",
    "record": "store/campaigns/j/train.json",
    "dataset": "datasets/cube/episodes/x.hdf5",
    "encoder": "store/encoders/google/siglip2/0123/model.safetensors",
    "elsewhere": "private/x",
}
ALLOWED = {
    "trainer": {
        "checkpoint": {"list", "get", "put", "delete", "delete many"},
        "record": {"list", "get", "put"},
        "dataset": {"list", "get"},
        "encoder": {"list", "get"},
        "elsewhere": set(),
    },
    "reader": {
        "checkpoint": {"list", "get"},
        "record": {"list", "get"},
        "dataset": {"list", "get"},
        "encoder": {"list", "get"},
        "elsewhere": set(),
    },
    "gc": {
        "checkpoint": {"list", "get", "delete", "delete many"},
        "record": {"list"},
        "dataset": set(),
        "encoder": {"list"},
        "elsewhere": set(),
    },
}


@pytest.fixture
def become(bucket, minio_server, monkeypatch):
    """A function that makes a user with a policy, and the environment that user's; gives the user's client."""
    root = StaticProvider(minio_server.key, minio_server.secret)
    admin = MinioAdmin(endpoint=minio_server.host, credentials=root, region="us-east-1", secure=False)

    def become(role):
        text = (POLICIES / f"{role}.json").read_text()
        for name, value in (("BUCKET", bucket), ("STORE", "store"), ("DATASETS", "datasets")):
            text = text.replace(name, value)
        user, secret = f"{role}-{secrets.token_hex(4)}", secrets.token_hex(12)
        admin.policy_add(user, policy=json.loads(text))
        admin.user_add(user, secret)
        admin.attach_policy([user], user)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", user)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
        monkeypatch.setattr(s3_store, "_probed", {})
        return minio_server.client(user, secret)

    return become


def allowed(request):
    """Whether the server lets it happen."""
    try:
        return request() != "denied"
    except S3Error as error:
        if error.code == "AccessDenied":
            return False
        raise


def requests(client, bucket, key):
    """One request a verb."""
    return {
        "list": lambda: list(client.list_objects(bucket, prefix=f"{key.rpartition('/')[0]}/")),
        "get": lambda: client.get_object(bucket, key).read(),
        "put": lambda: client.put_object(bucket, key, io.BytesIO(b"new"), 3),
        "delete": lambda: client.remove_object(bucket, key),
        # This one says in its answer what it refused.
        "delete many": lambda: "denied" if list(client.remove_objects(bucket, [DeleteObject(key)])) else "",
    }


@pytest.mark.parametrize("role", sorted(ALLOWED))
def test_every_role_may_do_what_its_row_says(role, bucket, minio_server, become):
    root, client = minio_server.client(), become(role)
    found = {place: set() for place in PLACES}
    for place, key in PLACES.items():
        for verb, request in requests(client, bucket, key).items():
            root.put_object(bucket, key, io.BytesIO(b"old"), 3)
            if allowed(request):
                found[place].add(verb)
    assert found == ALLOWED[role]
    assert not allowed(lambda: list(client.list_objects(bucket)))
    assert not allowed(lambda: client.get_bucket_policy(bucket))
    assert not allowed(lambda: client.make_bucket(f"{bucket}-2"))
    nothing = json.dumps({"Version": "2012-10-17", "Statement": []})
    assert not allowed(lambda: client.set_bucket_policy(bucket, nothing))


def test_a_trainer_can_do_its_work(bucket, become, tmp_path, monkeypatch, tiny_dataset_maker):
    ref = tiny_dataset_maker(frames=4, image_size=(32, 32), cameras=["top"])
    text = push_dataset(ref, f"s3://{bucket}/datasets/cube")
    become("trainer")
    monkeypatch.setenv("ROBOIMI_CACHE", str(tmp_path / "another"))
    assert resolve_dataset(text).bring().digest == ref.digest
    store = S3Store(f"s3://{bucket}/store")
    assert store.conditional is True
    (store.folder("trainings/k/checkpoints/1") / "model").write_bytes(b"x" * (17 << 20))
    store.publish("trainings/k/checkpoints/1", "MANIFEST.json", {})
    latest = store.create("trainings/k/LATEST.json", {"epoch": 1})
    assert store.replace("trainings/k/LATEST.json", {"epoch": 2}, latest.version) is not None
    assert store.read_json("trainings/k/none.json") is None
    store.fetch("trainings/k/checkpoints/1")
    store.remove("trainings/k/checkpoints/1", "MANIFEST.json")
    assert store.list("trainings/k") == ["LATEST.json"]


def test_garbage_collection_can_do_its_work(bucket, become):
    root = S3Store(f"s3://{bucket}/store")
    for name in ("00000001-e1-00000000", "00000002-e1-00000000"):
        (root.folder(f"trainings/k/checkpoints/{name}") / "model.safetensors").write_bytes(b"x")
    root.publish("trainings/k/checkpoints/00000001-e1-00000000", "MANIFEST.json", {"step": 1})
    become("gc")
    store = S3Store(f"s3://{bucket}/store")
    assert store.committed("trainings/k/checkpoints/00000001-e1-00000000", "MANIFEST.json") == {"step": 1}
    retention = Retention(store, "trainings/k", keep=1, epoch=-1)
    assert retention.removable(["00000002-e1-00000000"], {}, (), whole=(), damaged=()) == []
    assert list(store.read_json(f"trainings/k/{SEEN}")) == ["00000002-e1-00000000"]
    store.remove("trainings/k/checkpoints/00000001-e1-00000000", "MANIFEST.json")
    assert store.list("trainings/k/checkpoints") == []
    with pytest.raises(StoreAccessError, match="no right"):
        store.write_json("trainings/k/LATEST.json", {})


def test_a_reader_reads_and_is_told_when_it_would_write(bucket, become):
    S3Store(f"s3://{bucket}/store").write_json("campaigns/j/a.json", {"n": 1})
    become("reader")
    store = S3Store(f"s3://{bucket}/store")
    assert store.read_json("campaigns/j/a.json") == {"n": 1}
    assert store.read_json("campaigns/j/none.json") is None
    with pytest.raises(StoreAccessError, match="the access key has no right to do this"):
        store.write_json("campaigns/j/a.json", {"n": 2})
    with pytest.raises(StoreAccessError, match="no right"):
        S3Store(f"s3://{bucket}/private")
