"""What went wrong between us and a Kubeflow Pipelines server, as one sentence."""

import json
import re
from typing import Any

from kfp_server_api.exceptions import ApiException
from urllib3.exceptions import HTTPError, SSLError

from pipelines.cluster.kfp_connection import (
    Connection,
    NotFoundError,
    ServerError,
    ServerRefusedError,
    ServerUnavailableError,
)


def api_failure(connection: Connection, namespace: str | None, what: str, error: ApiException) -> ServerError:
    """What an answer that is an error means.

    Args:
        connection: to which server.
        namespace: the user's; None on a server for a single user.
        what: was asked for.
        error: of the generated client.
    """
    host, said = connection.host, _message(error)
    if error.status == 0:
        return no_trust(connection, error.reason)
    # A gateway in front of KFP refuses with a line of text; KFP itself says why, as JSON.
    gateway = error.status == 403 and not _document(error)
    if error.status == 401 or (gateway and not connection.has_token):
        if connection.has_token:
            return ServerRefusedError(
                f"KFP at {host} does not accept the token, which may have expired: get a new one into "
                f"{connection.token_file or connection.token_variable}."
            )
        return ServerRefusedError(
            f"KFP at {host} wants a token: put one into the environment variable {connection.token_variable}, name a "
            "file that holds one by --token-file, or correct --host."
        )
    if error.status == 403:
        where = f" in namespace {namespace!r}" if namespace else ""
        return ServerRefusedError(f"KFP at {host} refuses {what}{where} ({said}): use a namespace of yours.")
    if error.status == 404:
        return NotFoundError(f"KFP at {host} does not have {what} ({said}): look at what there is.")
    if error.status in {301, 302, 303, 307, 308}:
        return ServerRefusedError(
            f"KFP at {host} sends to a login page: put a token into {connection.token_variable}, or name a file of one "
            "by --token-file."
        )
    if error.status in {429, 502, 503, 504}:
        return ServerUnavailableError(
            f"KFP at {host} cannot answer now (HTTP {error.status}, {said}): try again later."
        )
    return ServerError(f"KFP at {host} failed at {what} (HTTP {error.status}, {said}): read the log of its API server.")


def transport_failure(connection: Connection, error: HTTPError) -> ServerError:
    """What it means that no answer came."""
    cause = getattr(error, "reason", None) or error
    if isinstance(cause, SSLError):
        return no_trust(connection, cause)
    why = re.sub(r"^HTTPS?Connection(Pool)?\(.*?\): ", "", str(cause))
    return ServerUnavailableError(
        f"KFP at {connection.host} does not answer ({short(why)}): see that --host is right and reachable from here."
    )


def no_trust(connection: Connection, cause: object) -> ServerError:
    """What it means that its certificate could not be verified."""
    return ServerRefusedError(
        f"The certificate of {connection.host} is not trusted ({short(cause)}): give its authority by --ca."
    )


def _message(error: ApiException) -> str:
    """What the server says, on one line: `message` of its API, `error_message` of its uploads."""
    document = _document(error)
    return short(document.get("message") or document.get("error_message") or document.get("error") or error.reason)


def _document(error: ApiException) -> dict[str, Any]:
    """The answer's body, if it is a JSON object."""
    try:
        document = json.loads(error.body)
    except (TypeError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def short(text: object, most: int = 300) -> str:
    """One line of at most so many characters."""
    line = " ".join(str(text).split()).rstrip(".")
    return line if len(line) <= most else f"{line[:most]}…"
