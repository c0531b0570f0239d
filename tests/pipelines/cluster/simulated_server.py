"""What the simulated servers share: a real HTTP server on the loopback interface that answers with JSON."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qsl, urlsplit


class Answer(Exception):
    """An answer that is an error: its HTTP status and its body."""

    def __init__(self, status: int, body: dict[str, Any] | str):
        super().__init__(status, body)
        self.status, self.body = status, body


class SimulatedServer:
    """Answers requests by `answer(method, path, query, body)`, which subclasses define.

    Attributes:
        url: without a path.
        requests: method and path of every request, by arrival.
        headers: of the last request, by their names in small letters.
    """

    def __init__(self) -> None:
        self.requests: list[tuple[str, str]] = []
        self.headers: dict[str, str] = {}
        self._lock = threading.RLock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                outer.handle(self)

            do_GET = do_POST = do_DELETE = do_PATCH = handle_any

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, method: str, path: str, query: dict[str, str], body: bytes) -> Any:
        """A JSON document, or `(content type, bytes)`; raises `Answer` for an error."""
        raise NotImplementedError

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        """Answer one request."""
        parts = urlsplit(request.path)
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        status, kind = 200, "application/json"
        with self._lock:
            self.requests.append((request.command, parts.path))
            self.headers = {name.lower(): value for name, value in request.headers.items()}
            try:
                document = self.answer(request.command, parts.path, dict(parse_qsl(parts.query)), body)
            except Answer as error:
                status, document = error.status, error.body
        if isinstance(document, tuple):
            kind, content = document
        else:
            content = json.dumps(document).encode()
        request.send_response(status)
        request.send_header("Content-Type", kind)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content)
