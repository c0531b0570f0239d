"""HTTP connections to an object store that notice within seconds when the other side is gone, and never hang.

`minio` by itself waits five minutes for each answer and repeats requests on its own: a client that has to know whether
a write of its own was refused must do the repeating itself, so none is done here.
"""

import fcntl
import select
import socket
import struct
import termios

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 30.0
"""How long the other side may take for the next bytes of an answer, or to take the next bytes of a request."""

CONNECTIONS = 32
"""Kept open at the same time; more than one store's transfers use."""

_BYTES_AT_ONCE = 1 << 16


class _SlowLine:
    """Tells a slow line from a dead one.

    A socket's timeout is the most that one `sendall` may take: a whole part in one call would have to pass within it,
    however steadily the bytes flow, so large bodies are handed over in small pieces. And when all is handed over,
    megabytes may still wait in the kernel: as long as they become fewer, the other side is there.
    """

    def send(self, data: object) -> None:
        """See `http.client.HTTPConnection.send`."""
        if not isinstance(data, bytes) or len(data) <= _BYTES_AT_ONCE:
            return super().send(data)
        self.sock.settimeout(ANSWER_SECONDS)
        view = memoryview(data)
        for start in range(0, len(view), _BYTES_AT_ONCE):
            super().send(view[start : start + _BYTES_AT_ONCE])
        return None

    def getresponse(self) -> object:
        """See `http.client.HTTPConnection.getresponse`."""
        waiting, answer = _waiting_bytes(self.sock), select.poll()
        if waiting:
            answer.register(self.sock, select.POLLIN)
        while waiting and not answer.poll(1000 * ANSWER_SECONDS):
            before, waiting = waiting, _waiting_bytes(self.sock)
            if waiting >= before:
                break
        return super().getresponse()


def _waiting_bytes(connection: socket.socket | None) -> int:
    """Bytes that were handed to the kernel and that the other side has not confirmed."""
    if connection is None:
        return 0
    return struct.unpack("i", fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, b"\0\0\0\0"))[0]


class _Connection(_SlowLine, HTTPConnection):
    pass


class _TLSConnection(_SlowLine, HTTPSConnection):
    pass


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _TLSPool(HTTPSConnectionPool):
    ConnectionCls = _TLSConnection


def make_http_client(ca_file: str | None = None) -> urllib3.PoolManager:
    """A connection pool with short timeouts and without repetitions.

    Args:
        ca_file: certificates to trust; None: those that the `minio` package brings.
    """
    import certifi

    client = urllib3.PoolManager(
        timeout=urllib3.Timeout(connect=CONNECT_SECONDS, read=ANSWER_SECONDS),
        maxsize=CONNECTIONS,
        cert_reqs="CERT_REQUIRED",
        ca_certs=ca_file or certifi.where(),
        retries=urllib3.Retry(total=0, raise_on_redirect=False, raise_on_status=False),
    )
    client.pool_classes_by_scheme = {"http": _Pool, "https": _TLSPool}
    return client
