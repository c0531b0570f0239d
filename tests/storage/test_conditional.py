"""Conditional writes: what `minio` does with conditions, lost answers that are no defeats, servers that ignore them."""

import http.client
import http.server
import io
import threading
from datetime import UTC, datetime
from urllib.parse import urlsplit

import pytest
from minio.credentials import Credentials
from minio.error import S3Error
from minio.signer import sign_v4_s3

from roboimi.errors import StoreUnavailableError
from roboimi.storage import conditional, s3_store
from roboimi.storage.s3_client import S3Client
from roboimi.storage.s3_store import S3Store

LOST = 3
"""How often each kind of write loses its answer here; `test_storage_faults.py` does it a hundred times."""


def test_the_public_put_of_minio_hides_conditions(bucket, minio_server):
    # Why the request is made one level below. Should a newer client have conditions of its own, use them instead.
    client = minio_server.client()
    for body in (b"one", b"two"):
        client.put_object(bucket, "x", io.BytesIO(body), 3, metadata={"If-None-Match": "*"})
    assert client.get_object(bucket, "x").read() == b"two"


def test_the_put_below_hands_conditions_on(bucket, minio_server):
    client = minio_server.client()
    client._put_object(bucket, "x", b"one", {"If-None-Match": "*"})
    with pytest.raises(S3Error) as refusal:
        client._put_object(bucket, "x", b"two", {"If-None-Match": "*"})
    assert refusal.value.code == "PreconditionFailed"
    with pytest.raises(S3Error) as refusal:
        client._put_object(bucket, "x", b"two", {"If-Match": '"0123"'})
    assert refusal.value.code == "PreconditionFailed"
    assert client.get_object(bucket, "x").read() == b"one"


@pytest.fixture
def lossy_store(bucket, minio_server, toxiproxy, monkeypatch):
    """A store, and a function after which the answer to the next request is lost on its way back."""
    proxy = toxiproxy.proxy(minio_server.host)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    store, original = S3Store(f"s3://{bucket}/store"), S3Client.call
    toxics = []

    def call(client, what, request, **options):
        def attempt(minio):
            try:
                return request(minio)
            finally:
                while toxics:
                    proxy.remove(toxics.pop())

        return original(client, what, attempt, **options)

    monkeypatch.setattr(S3Client, "call", call)
    # One byte of the answer comes through, then the connection is cut: the request has been carried out.
    return store, lambda: toxics.append(proxy.add("limit_data", bytes=1))


def test_a_commit_whose_answer_is_lost_is_no_defeat(lossy_store):
    store, lose_next = lossy_store
    for number in range(LOST):
        lose_next()
        assert store.create(f"t/{number}.json", {"writer": "me"}) is not None
        assert store.create(f"t/{number}.json", {"writer": "me"}) is None


def test_without_the_nonce_it_would_be_one(lossy_store, monkeypatch):
    # The test above sees what it is there to see.
    store, lose_next = lossy_store
    monkeypatch.setattr(conditional.ConditionalWriter, "_etag_of_own", lambda writer, key, nonce: None)
    lose_next()
    assert store.create("t/1.json", {"writer": "me"}) is None


def test_a_swap_whose_answer_is_lost_is_no_defeat(lossy_store):
    store, lose_next = lossy_store
    now = store.create("t/LATEST.json", {"epoch": 0})
    for number in range(1, LOST + 1):
        lose_next()
        now = store.replace("t/LATEST.json", {"epoch": number}, now.version)
        assert now is not None
        assert store.read_versioned("t/LATEST.json") == now


def test_a_publication_whose_answer_is_lost_is_committed_once(lossy_store):
    store, lose_next = lossy_store
    (store.folder("c/a") / "x").write_bytes(b"x")
    lose_next()
    assert store.publish("c/a", "MANIFEST.json", {"writer": 1}) == {"writer": 1}
    assert store.publish("c/a", "MANIFEST.json", {"writer": 2}) == {"writer": 1}


def test_a_write_of_unknown_fate_is_recognised_when_it_is_done_again(bucket, minio_server, toxiproxy, monkeypatch):
    proxy = toxiproxy.proxy(minio_server.host)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    store = S3Store(f"s3://{bucket}/store")
    store.client.patience = 0
    toxic = proxy.add("limit_data", bytes=1)
    with pytest.raises(StoreUnavailableError):
        store.create("t/LATEST.json", {"epoch": 1})
    proxy.remove(toxic)
    assert store.create("t/LATEST.json", {"epoch": 1}) is not None
    assert store.create("t/LATEST.json", {"epoch": 1}) is None


class _Gateway(http.server.BaseHTTPRequestHandler):
    """A gateway that signs requests anew and leaves the conditions out on the way, as some endpoints do."""

    protocol_version = "HTTP/1.1"

    def _pass_on(self):
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        dropped = {"if-none-match", "if-match", "authorization", "host", "connection", "accept-encoding"}
        headers = {name: value for name, value in self.headers.items() if name.lower() not in dropped}
        server = self.server.minio
        date = datetime.now(UTC).replace(microsecond=0)
        headers |= {"Host": server.host, "x-amz-date": date.strftime("%Y%m%dT%H%M%SZ")}
        url = urlsplit(f"{server.url}{self.path}")
        digest = headers.get("x-amz-content-sha256")
        key = Credentials(server.key, server.secret)
        signed = sign_v4_s3(
            method=self.command,
            url=url,
            region="us-east-1",
            headers=headers,
            credentials=key,
            content_sha256=digest,
            date=date,
        )
        connection = http.client.HTTPConnection(server.host)
        connection.request(self.command, self.path, body or None, signed)
        answer = connection.getresponse()
        content = answer.read()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in {"transfer-encoding", "connection", "content-length", "date", "server"}:
                self.send_header(name, value)
        size = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(content))
        self.send_header("Content-Length", size or "0")
        self.end_headers()
        self.wfile.write(content)
        connection.close()

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass_on

    def log_message(self, *arguments):
        pass


@pytest.fixture
def deaf_store(bucket, minio_server, monkeypatch):
    """A store whose endpoint ignores conditions."""
    gateway = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Gateway)
    gateway.daemon_threads = True
    gateway.minio = minio_server
    thread = threading.Thread(target=gateway.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{gateway.server_port}")
    yield lambda: S3Store(f"s3://{bucket}/store")
    gateway.shutdown()
    gateway.server_close()


def test_a_server_that_ignores_conditions_is_found_out_and_said(deaf_store, caplog):
    store = deaf_store()
    assert store.conditional is False
    assert "ignores conditions on writes" in caplog.text
    caplog.clear()
    assert deaf_store().conditional is False
    assert caplog.text == ""  # asked and said once a process


def test_one_writer_is_safe_where_conditions_are_ignored(deaf_store):
    store = deaf_store()
    first = store.create("t/LATEST.json", {"epoch": 1})
    assert store.create("t/LATEST.json", {"epoch": 9}) is None
    second = store.replace("t/LATEST.json", {"epoch": 2}, first.version)
    assert store.replace("t/LATEST.json", {"epoch": 3}, first.version) is None
    assert store.replace("t/none.json", {"epoch": 3}, first.version) is None
    assert store.read_versioned("t/LATEST.json") == second
    assert store.publish("c/a", "MANIFEST.json", {"writer": 1}) == {"writer": 1}
    assert store.publish("c/a", "MANIFEST.json", {"writer": 2}) == {"writer": 1}


def test_a_real_server_is_asked_once_a_process(bucket, monkeypatch):
    asked = []
    monkeypatch.setattr(s3_store, "honours_conditions", lambda *a, **o: asked.append(a) or True)
    for _ in range(3):
        assert S3Store(f"s3://{bucket}/store").conditional is True
    assert len(asked) == 1


def test_the_probe_writes_once_and_is_not_listed(bucket, minio_server):
    store = S3Store(f"s3://{bucket}/store")
    found = minio_server.client().stat_object(bucket, f"store/{s3_store.PROBE}")
    assert conditional.honours_conditions(store.client, f"store/{s3_store.PROBE}") is True
    assert minio_server.client().stat_object(bucket, f"store/{s3_store.PROBE}").last_modified == found.last_modified
    assert minio_server.client().stat_object(bucket, f"store/{s3_store.PROBE}").etag == found.etag
