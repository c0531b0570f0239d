"""How to reach a Kubeflow Pipelines server, and the kinds of trouble with one."""

import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlparse

from roboimi.errors import ConfigError, RoboimiError

HOST_VARIABLES = ("KFP_HOST", "KF_PIPELINES_ENDPOINT")
NAMESPACE_VARIABLE = "KFP_NAMESPACE"
TOKEN_VARIABLE = "KFP_TOKEN"
TOKEN_FILE_VARIABLE = "KF_PIPELINES_SA_TOKEN_PATH"
"""Where a pod of a Kubeflow profile finds its projected token; the variable is kfp's own."""


class ServerError(RoboimiError):
    """A KFP server that answers, and not as it should: another kind of server, or a failure inside of it."""

    exit_code = 18
    failure_class = "kfp"


class ServerUnavailableError(ServerError):
    """A KFP server that does not answer."""

    exit_code = 19
    failure_class = "kfp-unavailable"
    retryable = True


class ServerRefusedError(ServerError):
    """A KFP server that answers and refuses: no token, an expired one, or one without rights in the namespace."""

    exit_code = 22
    failure_class = "kfp-refused"
    cured_outside = True


class NotFoundError(ServerError):
    """Something that the KFP server does not have."""


@dataclass(frozen=True)
class Connection:
    """How to reach a server.

    Attributes:
        host: its URL.
        namespace: of the campaign's pods. A server for several users asks for it; one for a single user runs
            everything in its own, and must not be told any.
        token_file: a file with a bearer token, read anew for every request since tokens are rotated.
        token_variable: the environment variable with one, where there is no file.
        ca: file with the certificates to trust; None: the public ones.
        page: URL of the user interface; None: the host.
    """

    host: str
    namespace: str = ""
    token_file: Path | None = None
    token_variable: str = TOKEN_VARIABLE
    ca: Path | None = None
    page: str | None = None

    def __post_init__(self) -> None:
        parts = urlparse(self.host)
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username or parts.password:
            raise ConfigError(
                f"The KFP host {self.host!r} is no plain URL: write it as https://kfp.example.org/pipeline, and give a "
                f"token by --token-file or {TOKEN_VARIABLE}."
            )
        for path, option in ((self.token_file, "--token-file"), (self.ca, "--ca")):
            if path is not None and not os.access(path, os.R_OK):
                raise ConfigError(f"File {path} cannot be read: correct {option}.")

    @property
    def has_token(self) -> bool:
        """Whether requests carry a token."""
        return self.token_file is not None or bool(os.environ.get(self.token_variable))

    def token(self) -> str:
        """The bearer token as it is now; empty where there is none."""
        if self.token_file is not None:
            return self.token_file.read_text().strip()
        return os.environ.get(self.token_variable, "").strip()

    def run_page(self, run_id: str) -> str:
        """Where the user interface shows a run."""
        return f"{(self.page or self.host).rstrip('/')}/#/runs/details/{run_id}"


def find_host(given: str | None) -> str:
    """The option's value, else that of the environment.

    Raises:
        ConfigError: there is neither.
    """
    for host in (given, *(os.environ.get(name) for name in HOST_VARIABLES)):
        if host:
            return host if "://" in host else f"https://{host}"
    raise ConfigError(f"No KFP server is named: give its URL by --host, or in {HOST_VARIABLES[0]}.")
