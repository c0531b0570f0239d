"""This machine's Docker engine for the tests; without one that answers, those that use it are skipped with one line."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import docker


@pytest.fixture(scope="module")
def engine() -> Iterator["docker.DockerClient"]:
    """A client of the engine."""
    # Here: most tests need neither the client library nor the pipelines.
    from pipelines.local.docker_engine import EngineError, connect

    try:
        client = connect()
    except EngineError as error:
        pytest.skip(str(error))
    yield client
    client.close()
