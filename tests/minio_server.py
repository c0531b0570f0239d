"""A real MinIO server and a real toxiproxy for the tests: never a fake for what the store's protocol promises.

`scripts/tools.sh` provides the programs. Where there are none the tests that use them are skipped with one line.
"""

import io
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from minio import Minio
from minio.error import MinioException
from urllib3.exceptions import HTTPError

from roboimi.storage.http_client import make_http_client
from roboimi.storage.s3_store import S3Store

CHECKOUT = Path(__file__).resolve().parents[1]
CLEARED = ("MINIO_", "AWS_", "ROBOIMI_S3_")
"""What the environment of a developer could say about object stores begins with one of these."""


def find_tool(name: str) -> str:
    """Path of a server program; skips the test where there is none."""
    path = shutil.which(name, path=os.pathsep.join([str(CHECKOUT / ".tools/bin"), os.environ.get("PATH", "")]))
    if path is None:
        pytest.skip(f"{name} is not here: run scripts/tools.sh")
    return path


def free_port() -> int:
    """A port that nobody listens on.

    Not one of those that the kernel gives to outgoing connections: while a server is down, such a connection could
    take its port, and the server would not come back.
    """
    while True:
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port := 15_000 + secrets.randbelow(15_000)))
            except OSError:
                continue
            return port


class MinioServer:
    """A MinIO server with one drive, at a port that stays the same over stops and starts.

    Attributes:
        key: the root user's access key.
        secret: its secret.
        url: the endpoint, with http://.
        bucket: see `new_bucket`.
    """

    def __init__(self, folder: Path, *, certificates: Path | None = None):
        self.folder, self.certificates = folder, certificates
        self.port = free_port()
        self.key, self.secret = f"root{secrets.token_hex(4)}", secrets.token_hex(16)
        self.host = f"127.0.0.1:{self.port}"
        self.url = f"{'https' if certificates else 'http'}://{self.host}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        command = [find_tool("minio"), "server", "--quiet", "--address", self.host]
        if self.certificates:
            command += ["--certs-dir", str(self.certificates)]
        self.folder.mkdir(parents=True, exist_ok=True)
        environment = {name: value for name, value in os.environ.items() if not name.startswith(CLEARED)}
        environment |= {"MINIO_ROOT_USER": self.key, "MINIO_ROOT_PASSWORD": self.secret, "MINIO_BROWSER": "off"}
        # Of some thousand starts one was seen to compute for minutes without ever listening: such a one is replaced.
        for attempt in range(3):
            with open(self.folder.with_suffix(".log"), "ab") as log:
                self._process = subprocess.Popen(
                    [*command, str(self.folder)], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
                )
            try:
                wait_for_port(self.port, self._process, seconds=60)
                break
            except OSError:
                if attempt == 2 or self._process.poll() is not None:
                    raise
                self._process.kill()
                self._process.wait()
        client, deadline = self.client(), time.monotonic() + 120
        while True:
            try:
                client.list_buckets()
                return
            except (MinioException, OSError, HTTPError):
                if time.monotonic() > deadline or self._process.poll() is not None:
                    raise
                time.sleep(0.02)

    def stop(self) -> None:
        """Kill it, as a power cut would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def hang(self) -> None:
        """Let it accept connections and answer nothing, until `go_on`."""
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """End `hang`."""
        self._process.send_signal(signal.SIGCONT)

    def client(self, key: str | None = None, secret: str | None = None) -> Minio:
        """A plain client, as root or as somebody else."""
        # Without urllib3's repetitions: a server that starts says "Retry-After: 60", which they would obey.
        certificates = str(self.certificates / "public.crt") if self.certificates else None
        return Minio(
            self.host,
            key or self.key,
            secret or self.secret,
            secure=bool(self.certificates),
            region="us-east-1",
            http_client=make_http_client(certificates),
        )

    def new_bucket(self) -> str:
        """Make an empty bucket."""
        name = f"test-{secrets.token_hex(6)}"
        self.client().make_bucket(name)
        return name

    def put(self, store: str, key: str, content: bytes) -> None:
        """Write an object of the store `s3://bucket/prefix` behind its back."""
        bucket, _, prefix = store.removeprefix("s3://").partition("/")
        self.client().put_object(bucket, f"{prefix}/{key}", io.BytesIO(content), len(content))

    def environment(self, url: str | None = None) -> dict[str, str]:
        """The variables that lead a process to this server, or to it through the proxy at `url`."""
        return {
            "AWS_ENDPOINT_URL": url or self.url,
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_REGION": "us-east-1",
        }


class Toxiproxy:
    """A toxiproxy server: one proxy a name, to which faults of the network ("toxics") are added.

    See https://github.com/Shopify/toxiproxy for the toxics and their attributes.
    """

    def __init__(self):
        self.port = free_port()
        self._process = subprocess.Popen(
            [find_tool("toxiproxy-server"), "-port", str(self.port)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_for_port(self.port, self._process)

    def proxy(self, upstream: str) -> "Proxy":
        """A new proxy in front of `host:port`."""
        name, port = f"proxy-{secrets.token_hex(4)}", free_port()
        self.request("POST", "/proxies", {"name": name, "listen": f"127.0.0.1:{port}", "upstream": upstream})
        return Proxy(self, name, port)

    def request(self, method: str, path: str, document: dict | None = None) -> None:
        """One request to toxiproxy's own interface."""
        body = None if document is None else json.dumps(document).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data=body, method=method)
        try:
            urllib.request.urlopen(request, timeout=10).close()
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"toxiproxy refused {method} {path}: {error.read().decode()}") from error

    def stop(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()


class Proxy:
    """One proxy of a `Toxiproxy`; its `url` takes the server's place."""

    def __init__(self, server: Toxiproxy, name: str, port: int):
        self._server, self._name = server, name
        self.url = f"http://127.0.0.1:{port}"

    def add(self, kind: str, *, stream: str = "downstream", toxicity: float = 1.0, **attributes: int) -> str:
        """Add a toxic: `proxy.add("timeout", timeout=100)`; gives its name for `remove`."""
        name = f"{kind}-{secrets.token_hex(4)}"
        toxic = {"name": name, "type": kind, "stream": stream, "toxicity": toxicity, "attributes": attributes}
        self._server.request("POST", f"/proxies/{self._name}/toxics", toxic)
        return name

    def remove(self, toxic: str) -> None:
        """Take a toxic away."""
        self._server.request("DELETE", f"/proxies/{self._name}/toxics/{toxic}")

    def enable(self, enabled: bool) -> None:
        """Whether it accepts connections; those that are open are cut when it no longer does."""
        self._server.request("POST", f"/proxies/{self._name}", {"enabled": enabled})


def wait_for_port(port: int, process: subprocess.Popen[bytes], seconds: float = 120) -> None:
    """Until somebody listens."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.02)


@pytest.fixture(scope="session")
def minio_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MinioServer]:
    """One MinIO for all tests of a process; tests that stop or hang it make one of their own."""
    server = MinioServer(tmp_path_factory.mktemp("minio") / "drive")
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def toxiproxy() -> Iterator[Toxiproxy]:
    """One toxiproxy for all tests of a process; `toxiproxy.proxy(minio_server.host)` makes a proxy."""
    server = Toxiproxy()
    yield server
    server.stop()


@pytest.fixture
def s3_environment(minio_server: MinioServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment leads to MinIO as root, with a cache of its own and little patience; gives what was set."""
    for name in list(os.environ):
        if name.startswith(CLEARED):
            monkeypatch.delenv(name)
    environment = minio_server.environment() | {
        "ROBOIMI_CACHE": str(tmp_path / "cache"),
        "ROBOIMI_STORE_PATIENCE": "5",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return environment


@pytest.fixture
def bucket(minio_server: MinioServer, s3_environment: dict[str, str]) -> str:
    """A new bucket, and the environment to reach it."""
    return minio_server.new_bucket()


@pytest.fixture
def s3_store(bucket: str) -> S3Store:
    """A store at `s3://<new bucket>/store`."""
    return S3Store(f"s3://{bucket}/store")
