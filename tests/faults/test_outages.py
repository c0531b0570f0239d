"""A MinIO that is gone, hangs, answers with errors, or through a line that is slow or cut: the training never notices.

A training runs until it is told to stop; a fault begins and ends meanwhile. Its steps go on at their pace, a checkpoint
is committed soon after the fault is over, and at the end the store has the last step.
"""

import itertools
import signal
import statistics
import threading
import time
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from minio_server import MinioServer

from roboimi.storage.store import open_store
from roboimi.vla.training.reader import CheckpointReader
from tests.faults.harness import fork_training, the_training

CAMPAIGN = [pytest.mark.faults, pytest.mark.timeout(3600)]
SECONDS_TO_COMMIT = 30.0


@pytest.fixture
def server(tmp_path, s3_environment, monkeypatch):
    """A MinIO of this test's own, and the patience that a training has as shipped."""
    server = MinioServer(tmp_path / "own")
    server.start()
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("ROBOIMI_STORE_PATIENCE", raising=False)
    yield server
    server.stop()


class Failing:
    """A server in front of another that answers some requests with an error of its own, while it is told to."""

    def __init__(self, upstream: str):
        self.failing = False
        counter = itertools.count()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def forward(handler):
                body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
                if self.failing and next(counter) % 2 == 0:
                    answer, status, headers = b"", 503, {}
                else:
                    connection = HTTPConnection(upstream, timeout=60)
                    connection.request(handler.command, handler.path, body, dict(handler.headers))
                    response = connection.getresponse()
                    answer, status, headers = response.read(), response.status, dict(response.getheaders())
                    connection.close()
                handler.send_response(status)
                for name, value in headers.items():
                    if name.lower() not in {"transfer-encoding", "connection", "content-length"}:
                        handler.send_header(name, value)
                length = headers.get("Content-Length", len(answer)) if handler.command == "HEAD" else len(answer)
                handler.send_header("Content-Length", str(length))
                handler.end_headers()
                if handler.command != "HEAD":
                    handler.wfile.write(answer)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = forward

            def log_message(handler, *arguments):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self):
        self._server.shutdown()


class Training:
    """A training that runs until `stop`, and when its steps were."""

    def __init__(self, make_run, uri):
        run = make_run("train.steps=1000000", "train.checkpoint_interval_s=2", "train.log_every=100")
        times = []

        def before(report):
            def see(step):
                times.append(time.monotonic())
                if len(times) == 20:
                    report({"times": times.copy()})
                    times.clear()

            return see

        self.child = fork_training(run, uri, before=before)
        self._uri = uri
        self.times: list[float] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        while (times := self.child.next("times")) is not None:
            self.times += times

    def committed(self) -> int:
        store = open_store(self._uri)
        if not store.list("trainings"):
            return 0
        return (store.read_json(f"{the_training(store)}/LATEST.json") or {"step": 0})["step"]

    def wait_for_commit(self, after: int) -> float:
        """How many seconds until a later step is committed."""
        started = time.monotonic()
        while self.committed() <= after:
            assert time.monotonic() - started < 120, "nothing is committed any more"
            time.sleep(0.05)
        return time.monotonic() - started

    def stop(self) -> int:
        self.child.send(signal.SIGTERM)
        self._reader.join(60)
        return self.child.end()

    def paces(self, start: float, end: float) -> list[float]:
        """Milliseconds of each step between two moments."""
        times = [moment for moment in self.times if start <= moment <= end]
        return [1e3 * (b - a) for a, b in itertools.pairwise(times)]


def quantile(values, share):
    return sorted(values)[int(share * (len(values) - 1))]


def endure(make_run, uri, begin, end, seconds, calm):
    """Train through a fault: what was seen of it."""
    training = Training(make_run, uri)
    training.wait_for_commit(0)
    calm_from = time.monotonic()
    time.sleep(calm)
    begin()
    fault_from = time.monotonic()
    time.sleep(seconds)
    reached = training.child.last("step", 0)
    end()
    recovered = time.monotonic()
    took = training.wait_for_commit(reached)
    assert training.stop() == 143, training.child.said[-1]
    store = open_store(uri)
    assert CheckpointReader(store, the_training(store)).newest()[1].step == training.child.last("step")
    before, during = training.paces(calm_from, fault_from), training.paces(fault_from, recovered)
    return {
        "seconds": round(seconds, 1),
        "steps_meanwhile": len(during),
        "commit_after_s": round(took, 1),
        "step_ms_p50": [round(statistics.median(values), 2) for values in (before, during)],
        "step_ms_p99": [round(quantile(values, 0.99), 2) for values in (before, during)],
        "step_ms_max": [round(max(values), 1) for values in (before, during)],
    }


def check(seen):
    assert seen["steps_meanwhile"] > 5
    assert seen["commit_after_s"] < SECONDS_TO_COMMIT
    assert seen["step_ms_max"][1] < 5_000  # no step waited for the network


LENGTHS = [pytest.param(60, 40, marks=CAMPAIGN)]


@pytest.mark.parametrize(("seconds", "calm"), [(4, 3), *LENGTHS, pytest.param(600, 60, marks=CAMPAIGN)])
def test_minio_is_gone(make_run, server, note, seconds, calm):
    seen = endure(make_run, f"s3://{server.new_bucket()}/store", server.stop, server.start, seconds, calm)
    note(**seen)
    check(seen)


@pytest.mark.parametrize(("seconds", "calm"), LENGTHS)
def test_minio_hangs(make_run, server, note, seconds, calm):
    seen = endure(make_run, f"s3://{server.new_bucket()}/store", server.hang, server.go_on, seconds, calm)
    note(**seen)
    check(seen)


@pytest.mark.parametrize(("seconds", "calm"), LENGTHS)
def test_every_second_answer_is_an_error(make_run, server, note, monkeypatch, seconds, calm):
    proxy = Failing(server.host)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)

    def failing(value):
        return lambda: setattr(proxy, "failing", value)

    seen = endure(make_run, f"s3://{server.new_bucket()}/store", failing(True), failing(False), seconds, calm)
    proxy.close()
    note(**seen)
    check(seen)


@pytest.mark.parametrize(
    ("toxic", "attributes"),
    [("bandwidth", {"rate": 64}), ("limit_data", {"bytes": 100_000})],
    ids=["64 kB a second", "reset after 100 kB"],
)
@pytest.mark.parametrize(("seconds", "calm"), LENGTHS)
def test_the_line_is_slow_or_cut(make_run, server, toxiproxy, note, monkeypatch, toxic, attributes, seconds, calm):
    proxy = toxiproxy.proxy(server.host)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    names = []
    seen = endure(
        make_run,
        f"s3://{server.new_bucket()}/store",
        lambda: names.append(proxy.add(toxic, stream="upstream", **attributes)),
        lambda: proxy.remove(names[0]),
        seconds,
        calm,
    )
    note(**seen)
    check(seen)
