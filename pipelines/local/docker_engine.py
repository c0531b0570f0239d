"""The Docker engine of this machine, for campaigns whose steps run in the real images: checks, stopping, cleaning up.

Containers carry the campaign's run id as a label. They share this machine's processes and network, so that a step's PID
in its launch record means here what it means there, and `localhost` is the same object store.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from roboimi.errors import RoboimiError

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.containers import Container

JOB_LABEL = "roboimi.campaign"
OWNER_LABEL = "roboimi.owner-pid"
GONE = (404, 409)
"""What the engine answers about a container that is not there any more, or about to be removed."""

REVISION_LABEL = "org.opencontainers.image.revision"


class EngineError(RoboimiError):
    """No Docker engine that can run the steps, or not the images that it needs."""

    exit_code = 23
    failure_class = "docker"


def connect() -> "DockerClient":
    """The engine of this machine.

    Raises:
        EngineError: the client library is not installed, no engine answers, or it is another machine's.
    """
    try:
        import docker
    except ImportError as error:
        raise EngineError(
            "Steps in containers need docker's client library: run `pip install 'roboimi[docker]'`."
        ) from error
    try:
        client = docker.from_env()
        client.ping()
    except (docker.errors.DockerException, OSError) as error:
        raise EngineError(
            "No Docker engine answers: start it (`systemctl start docker`, or `dockerd`), and be root or in the group "
            "docker."
        ) from error
    if client.api.base_url != "http+docker://localhost":
        client.close()
        raise EngineError(
            f"The Docker engine at {client.api.base_url} is not this machine's, whose folders the steps need: unset "
            "DOCKER_HOST."
        )
    return client


def check_images(images: Sequence[str], revision: str | None) -> None:
    """Make sure that the images are here and hold this code; images that are not here would be asked of a registry.

    Args:
        images: their names.
        revision: of this checkout, as `roboimi.storage.launch_record.code_revision` gives it; None: not compared.

    Raises:
        EngineError: one is missing, or holds another revision.
    """
    import docker

    client = connect()
    try:
        for name in images:
            try:
                image = client.images.get(name)
            except docker.errors.ImageNotFound as error:
                raise EngineError(f"The image {name} is not on this machine: build it with `make images`.") from error
            inside = image.labels.get(REVISION_LABEL)
            if revision and inside != revision:
                raise EngineError(
                    f"The image {name} holds the code {inside}, and this checkout is {revision}: build it again with "
                    "`make images`."
                )
    finally:
        client.close()


class Containers:
    """The containers of one campaign.

    Args:
        job_id: the campaign's run id.
    """

    def __init__(self, job_id: str):
        self._job_id = job_id

    def own(self, pid: int) -> bool:
        """Whether a living process `pid` of this machine runs in one of them."""
        try:
            groups = Path(f"/proc/{pid}/cgroup").read_text()
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return False
        return state not in "ZX" and any(name in groups for name in self._ids())

    def remove(self) -> None:
        """End and remove them all, at once."""
        client = connect()
        try:
            for container in self._list(client):
                remove_container(container)
        finally:
            client.close()

    def remove_abandoned(self) -> None:
        """Remove the containers of campaigns whose processes were all killed at once, with nobody left to do it."""
        client = connect()
        try:
            for container in client.containers.list(all=True, ignore_removed=True, filters={"label": OWNER_LABEL}):
                if not Path(f"/proc/{container.labels[OWNER_LABEL]}").exists():
                    remove_container(container)
        finally:
            client.close()

    def _ids(self) -> list[str]:
        client = connect()
        try:
            return [container.id for container in self._list(client)]
        finally:
            client.close()

    def _list(self, client: "DockerClient") -> "list[Container]":
        return client.containers.list(all=True, ignore_removed=True, filters={"label": f"{JOB_LABEL}={self._job_id}"})


def remove_container(container: "Container") -> None:
    """End and remove a container that may be gone already."""
    from docker.errors import APIError

    try:
        container.remove(force=True)
    except APIError as error:
        if error.status_code not in GONE:
            raise
