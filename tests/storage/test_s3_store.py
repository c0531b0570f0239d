"""The object store's refusals, outages and transfers, against a real MinIO: a sentence each, and bytes under hashes."""

import copy
import datetime
import os
import subprocess
import sys
import threading

import pytest
from minio import Minio
from minio.datatypes import Object
from minio_server import MinioServer, free_port

from roboimi.errors import ConfigError, StoreAccessError, StoreDamagedError, StoreError, StoreUnavailableError
from roboimi.storage import http_client, s3_store, transfer
from roboimi.storage.s3_store import S3Store
from roboimi.storage.store import open_store
from roboimi.storage.unfinished import unfinished_folder


def one_sentence(error: BaseException, secret: str) -> str:
    text = str(error)
    assert "\n" not in text
    assert text.count(". ") == 0
    assert text.endswith(".")
    assert secret not in text
    return text


REFUSALS = [
    ({"AWS_ACCESS_KEY_ID": "nobody"}, "does not know this access key: correct AWS_ACCESS_KEY_ID"),
    ({"AWS_SECRET_ACCESS_KEY": "wrong-wrong"}, "this is not the access key's secret: correct AWS_SECRET_ACCESS_KEY"),
    ({"AWS_SESSION_TOKEN": "stale"}, "it does not know this session"),
]


@pytest.mark.parametrize(("change", "sentence"), REFUSALS)
def test_wrong_credentials_say_which(change, sentence, bucket, monkeypatch, minio_server):
    for name, value in change.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(s3_store, "_probed", {})
    with pytest.raises(StoreAccessError, match=sentence) as refusal:
        open_store(f"s3://{bucket}")
    one_sentence(refusal.value, minio_server.secret)
    assert not refusal.value.retryable
    assert refusal.value.exit_code == 11


def test_a_missing_bucket_is_named(s3_environment):
    with pytest.raises(StoreAccessError, match=r"no-such-bucket refuses .*: the bucket is not there: create it"):
        open_store("s3://no-such-bucket/store")


def test_a_clock_off_by_hours_is_named(bucket, monkeypatch):
    late = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=3)
    monkeypatch.setattr("minio.time.utcnow", lambda: late)
    with pytest.raises(StoreAccessError, match="clock differs from the server's by more than 15 minutes"):
        open_store(f"s3://{bucket}/late")


def test_a_refused_connection_is_said_in_a_sentence(s3_environment, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("ROBOIMI_STORE_PATIENCE", "0.3")
    with pytest.raises(StoreUnavailableError, match="connection refused") as outage:
        open_store("s3://bucket")
    one_sentence(outage.value, s3_environment["AWS_SECRET_ACCESS_KEY"])
    assert outage.value.retryable
    assert outage.value.exit_code == 10


def test_a_name_that_nobody_has_is_said(s3_environment, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://minio.invalid:9000")
    monkeypatch.setenv("ROBOIMI_STORE_PATIENCE", "0")
    with pytest.raises(StoreUnavailableError, match="its name cannot be resolved"):
        open_store("s3://bucket")


def test_tls_where_there_is_none_is_said(bucket, minio_server, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"https://{minio_server.host}")
    with pytest.raises(StoreAccessError, match="does not speak TLS: write http://"):
        open_store(f"s3://{bucket}")


@pytest.fixture(scope="module")
def tls_server(tmp_path_factory):
    """A MinIO that speaks TLS with a certificate of its own making."""
    folder = tmp_path_factory.mktemp("tls")
    certificates = folder / "certs"
    certificates.mkdir()
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(certificates / "private.key")]
    subprocess.run([*command, "-out", str(certificates / "public.crt")], check=True, capture_output=True)
    server = MinioServer(folder / "drive", certificates=certificates)
    server.start()
    yield server
    server.stop()


def test_tls_with_a_ca_file_and_without(tls_server, s3_environment, monkeypatch, tmp_path):
    for name, value in tls_server.environment().items():
        monkeypatch.setenv(name, value)
    uri = f"s3://{tls_server.new_bucket()}/store"
    with pytest.raises(StoreAccessError, match=r"certificate is not trusted .*: name the CA file in AWS_CA_BUNDLE"):
        open_store(uri)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tls_server.certificates / "public.crt"))
    store = open_store(uri)
    (store.folder("a") / "large").write_bytes(os.urandom(transfer.PART_BYTES + 5))
    store.publish("a", "DONE.json", {"n": 1})
    store.remove("a", "DONE.json")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{tls_server.host}")
    with pytest.raises(StoreAccessError, match="it speaks TLS: write https://"):
        open_store(uri)


def test_an_endpoint_that_is_no_object_store_is_said(s3_environment, toxiproxy, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{toxiproxy.port}")
    with pytest.raises(StoreAccessError, match="does not answer as an object store"):
        open_store("s3://bucket")


def test_an_outage_that_ends_within_the_patience_is_not_seen(tmp_path, s3_environment, monkeypatch):
    server = MinioServer(tmp_path / "drive")
    server.start()
    try:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        store = open_store(f"s3://{server.new_bucket()}/store")
        store.write_json("a.json", {"n": 1})
        server.stop()
        store.client.patience = 0
        with pytest.raises(StoreUnavailableError, match=r"did not take part in writing store/a\.json"):
            store.write_json("a.json", {"n": 2})
        store.client.patience = 60
        server.start()
        store.write_json("a.json", {"n": 3})
        assert store.read_json("a.json") == {"n": 3}
    finally:
        server.stop()


def test_a_server_that_hangs_is_noticed_and_waited_for(tmp_path, s3_environment, monkeypatch):
    monkeypatch.setattr(http_client, "ANSWER_SECONDS", 0.3)
    server = MinioServer(tmp_path / "drive")
    server.start()
    try:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        store = open_store(f"s3://{server.new_bucket()}/store")
        server.hang()
        store.client.patience = 0
        with pytest.raises(StoreUnavailableError, match="no answer in time"):
            store.write_json("a.json", {"n": 1})
        store.client.patience = 60
        threading.Timer(0.5, server.go_on).start()
        store.write_json("a.json", {"n": 2})
        assert store.read_json("a.json") == {"n": 2}
    finally:
        server.go_on()
        server.stop()


def test_a_slow_line_is_no_outage(bucket, minio_server, toxiproxy, monkeypatch):
    # 9 MB at 2.5 MB/s take 3.6 s, in which no answer and no piece of the request takes a second.
    monkeypatch.setattr(http_client, "ANSWER_SECONDS", 1.0)
    monkeypatch.setattr(http_client, "CONNECT_SECONDS", 1.0)
    proxy = toxiproxy.proxy(minio_server.host)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    store = S3Store(f"s3://{bucket}/store")
    store.client.patience = 0
    proxy.add("bandwidth", stream="upstream", rate=2500)
    (store.folder("a") / "x").write_bytes(os.urandom(9_000_000))
    store.publish("a", "DONE.json", {})


def test_a_patience_that_is_no_number_is_said(s3_environment, monkeypatch):
    monkeypatch.setenv("ROBOIMI_STORE_PATIENCE", "long")
    with pytest.raises(ConfigError, match="ROBOIMI_STORE_PATIENCE='long' is no number of seconds"):
        open_store("s3://bucket")


def test_a_connection_that_is_cut_in_a_part_is_made_up_for(bucket, minio_server, toxiproxy, monkeypatch):
    proxy = toxiproxy.proxy(minio_server.host)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    store = S3Store(f"s3://{bucket}/store")
    content = os.urandom(2 * transfer.PART_BYTES + 77)
    (store.folder("a") / "large").write_bytes(content)
    # Every connection is cut after 24 MiB in either direction: no file of this size passes on one.
    for stream in ("upstream", "downstream"):
        proxy.add("limit_data", stream=stream, bytes=24 << 20)
    store.publish("a", "DONE.json", {})
    monkeypatch.setenv("ROBOIMI_CACHE", os.environ["ROBOIMI_CACHE"] + "-of-another-machine")
    assert (S3Store(f"s3://{bucket}/store").fetch("a") / "large").read_bytes() == content


def test_nothing_is_sent_twice(s3_store, bucket, minio_server):
    for name, size in (("small", 10), ("large", transfer.PART_BYTES + 1)):
        (s3_store.folder("a") / name).write_bytes(os.urandom(size))
    s3_store.publish("a", "DONE.json", {})
    client = minio_server.client()
    before = {item.object_name: (item.etag, item.last_modified) for item in client.list_objects(bucket, recursive=True)}
    s3_store.publish("a", "DONE.json", {})
    assert before == {
        item.object_name: (item.etag, item.last_modified) for item in client.list_objects(bucket, recursive=True)
    }


def test_a_copy_is_used_again_only_if_it_is_what_the_store_has(s3_store, bucket, monkeypatch):
    monkeypatch.setenv("ROBOIMI_CACHE", os.environ["ROBOIMI_CACHE"] + "-of-another-machine")
    other = S3Store(f"s3://{bucket}/store")
    (s3_store.folder("a") / "x").write_bytes(b"one")
    s3_store.publish("a", "DONE.json", {})
    path = other.fetch("a") / "x"
    inode = path.stat().st_ino
    assert (other.fetch("a") / "x").stat().st_ino == inode
    path.write_bytes(b"eno")  # damaged here
    assert (other.fetch("a") / "x").read_bytes() == b"one"
    (s3_store.folder("b") / "x").write_bytes(b"two")
    s3_store.put("a/x", s3_store.folder("b") / "x")  # replaced there
    assert (other.fetch("a", ["x"]) / "x").read_bytes() == b"two"


@pytest.mark.parametrize("size", [100, transfer.PART_BYTES + 100])
def test_bytes_that_are_not_those_that_were_written_are_refused(size, s3_store, bucket, minio_server, monkeypatch):
    (s3_store.folder("a") / "x").write_bytes(os.urandom(size))
    s3_store.publish("a", "DONE.json", {})
    client = minio_server.client()
    metadata = client.stat_object(bucket, "store/a/x").metadata
    headers = {"x-amz-meta-sha256": metadata["x-amz-meta-sha256"]}
    client._put_object(bucket, "store/a/x", os.urandom(size), headers)
    monkeypatch.setenv("ROBOIMI_CACHE", os.environ["ROBOIMI_CACHE"] + "-of-another-machine")
    with pytest.raises(StoreDamagedError, match="store/a/x in the store has other bytes than were written there"):
        S3Store(f"s3://{bucket}/store").fetch("a")


def test_the_first_failure_of_a_transfer_is_what_is_said(s3_store, monkeypatch):
    for number in range(40):
        (s3_store.folder("a") / f"x{number}").write_bytes(b"x")
    (s3_store.folder("a") / "y y").write_bytes(b"y")
    with pytest.raises(StoreError, match="'y y'"):
        s3_store.publish("a", "DONE.json", {})
    assert s3_store.committed("a", "DONE.json") is None


def test_parts_of_an_upload_that_failed_are_taken_away(s3_store, bucket, minio_server, monkeypatch):
    (s3_store.folder("a") / "large").write_bytes(os.urandom(2 * transfer.PART_BYTES))
    original = transfer.Transfers._upload_part

    def fail(transfers, key, path, upload, number, *rest):
        if number == 2:
            raise StoreUnavailableError("The object store went away.")
        return original(transfers, key, path, upload, number, *rest)

    monkeypatch.setattr(transfer.Transfers, "_upload_part", fail)
    with pytest.raises(StoreUnavailableError, match="went away"):
        s3_store.publish("a", "DONE.json", {})
    assert minio_server.client()._list_multipart_uploads(bucket).uploads == []


def test_hidden_files_stay_here(s3_store):
    (s3_store.folder("a") / ".writing-x").write_bytes(b"")
    (s3_store.folder("a") / ".lock").write_bytes(b"")
    (s3_store.folder("a") / "sub").mkdir()
    (s3_store.folder("a") / "sub/x").write_bytes(b"x")
    s3_store.publish("a", "DONE.json", {})
    assert s3_store.list("a") == ["DONE.json", "sub"]
    assert s3_store.list("a/sub") == ["x"]


def test_objects_of_other_names_are_not_the_stores(s3_store, bucket, minio_server, tmp_path, monkeypatch):
    (s3_store.folder("a") / "x").write_bytes(b"x")
    s3_store.publish("a", "DONE.json", {})
    for name in ("y\n\x1b[31m", "\u202egnp.y", "a b", "folder/"):
        minio_server.put(s3_store.uri, f"a/{name}", b"")
    assert s3_store.list("a") == ["DONE.json", "folder", "x"]
    original = Minio.list_objects

    def with_traversal(client, *arguments, **options):
        yield from original(client, *arguments, **options)
        yield Object(bucket, "store/a/../../../../escaped", etag="0", size=1)

    monkeypatch.setattr(Minio, "list_objects", with_traversal)
    fetched = s3_store.fetch("a")
    assert sorted(path.name for path in fetched.rglob("*") if not path.name.startswith(".")) == ["DONE.json", "x"]
    monkeypatch.undo()


def test_a_prefix_inside_another_is_published_by_itself(s3_store):
    (s3_store.folder("t/a") / "metrics.jsonl").write_bytes(b"1")
    (s3_store.folder("t/a/checkpoints/1") / "model").write_bytes(b"2")
    s3_store.publish("t/a", "RESULT.json", {})
    assert s3_store.list("t/a") == ["RESULT.json", "metrics.jsonl"]


def test_unfinished_work_of_another_machine_is_gone_on_with(s3_store, bucket, tmp_path, monkeypatch):
    (tmp_path / "x").write_bytes(b"1")
    s3_store.put("f/a/x", tmp_path / "x")
    monkeypatch.setenv("ROBOIMI_CACHE", os.environ["ROBOIMI_CACHE"] + "-of-another-machine")
    other = S3Store(f"s3://{bucket}/store")
    folder = unfinished_folder(other, "f/a")
    assert (folder / "x").read_bytes() == b"1"
    (folder / "x").write_bytes(b"12")
    assert (unfinished_folder(other, "f/a") / "x").read_bytes() == b"12"
    assert (other.fetch("f/a") / "x").read_bytes() == b"1"


def test_a_forked_process_and_a_copy_have_connections_of_their_own(s3_store):
    s3_store.write_json("a.json", {"n": 1})
    child = os.fork()
    if child == 0:
        os._exit(0 if s3_store.read_json("a.json") == {"n": 1} else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert copy.copy(s3_store).read_json("a.json") == {"n": 1}


def test_uris_that_carry_secrets_or_nonsense_are_refused_without_repeating_them(s3_environment):
    with pytest.raises(StoreAccessError) as refusal:
        open_store("s3://me:hunter2@bucket/store")
    assert "hunter2" not in str(refusal.value)
    with pytest.raises(StoreAccessError, match="is no bucket's name"):
        open_store("s3:///store")
    with pytest.raises(StoreError, match="Store key"):
        open_store("s3://bucket/../other")


def test_a_secret_is_in_no_text(s3_store, minio_server, caplog):
    texts = [repr(s3_store.client.endpoint), repr(vars(s3_store)), repr(vars(s3_store.client)), caplog.text]
    s3_store.client.patience = 0
    minio = s3_store.client.minio
    with pytest.raises(StoreError) as refusal:
        s3_store.client.call("a test", lambda _: list(minio.list_objects("no-such-bucket")))
    error = refusal.value
    while error is not None:
        texts.append(repr(error))
        error = error.__cause__
    assert not [text for text in texts if minio_server.secret in text]


def test_memory_stays_bounded_however_large_the_file(s3_store, bucket):
    program = """
import os, resource, sys
from pathlib import Path
import roboimi.storage.transfer as transfer
from roboimi.storage.s3_store import S3Store
transfer.PART_BYTES = 5 << 20
store = S3Store(sys.argv[1])
path = store.folder("big") / "x"
with open(path, "wb") as file:
    for _ in range(12):
        file.write(os.urandom(10 << 20))
(store.folder("warm") / "x").write_bytes(os.urandom(6 << 20))
store.publish("warm", "DONE.json", {})
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
store.publish("big", "DONE.json", {})
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""
    done = subprocess.run([sys.executable, "-c", program, s3_store.uri], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 80  # MiB, of 120; six parts of 5 MiB are under way at a time
