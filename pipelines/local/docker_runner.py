"""The Docker runner of kfp.local, as campaigns need it: what a container may see, and how it really ended.

kfp.local has its containers removed by the engine when they end, and takes one that is gone when it asks for the exit
code for a success. A step that fails fast is then reported as done. Here the container stays until its code is known.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.local.docker_engine import GONE, JOB_LABEL, OWNER_LABEL, remove_container
from pipelines.local.request import LocalRequest
from roboimi.campaign_step import LOGS_VARIABLE
from roboimi.storage.local_copies import CACHE_VARIABLE, cache_root
from roboimi.vla.data.manifest import resolve_dataset
from roboimi.vla.models.encoder_spec import EncoderSpec

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.types import Mount
    from kfp import local

PASSED_PREFIXES = ("ROBOIMI_", "AWS_", "MINIO_", "SWANLAB_", "HF_")
PASSED_NAMES = frozenset({"SSL_CERT_FILE"} | {f"{kind}_PROXY" for kind in ("HTTP", "HTTPS", "NO", "ALL")})
IMAGES_OWN = frozenset({"ROBOIMI_REVISION", "ROBOIMI_IMAGE"})
"""What the environment here says of this checkout is not true of the image."""

SHM_SIZE = "2g"
NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")


def make_runner(request: LocalRequest) -> "local.DockerRunner":
    """The runner for one campaign; from here on, kfp.local runs containers by `run_container`."""
    from kfp import local
    from kfp.local import docker_task_handler

    docker_task_handler.run_docker_container = run_container
    return local.DockerRunner(**container_arguments(request, os.environ))


def container_arguments(request: LocalRequest, environment: Mapping[str, str]) -> dict[str, Any]:
    """What every container of the campaign is run with; kfp.local knows no arguments of single steps.

    Args:
        request: the campaign; the folders that its arguments name are seen under the same paths inside.
        environment: of the process that runs the campaign.
    """
    passed = passed_environment(environment)
    if EncoderSpec.parse(request.arguments["encoder"]).revision:
        # Fetched once for all steps, and for those outside of containers.
        passed.setdefault("HF_HOME", str(Path.home() / ".cache" / "huggingface"))
        Path(passed["HF_HOME"]).mkdir(parents=True, exist_ok=True)
    arguments = {
        "environment": passed,
        "mounts": _mounts(request, passed),
        "labels": {JOB_LABEL: request.job_id, OWNER_LABEL: str(request.owner_pid)},
        # What steps write belongs to who runs the campaign.
        "user": f"{os.getuid()}:{os.getgid()}",
        "group_add": [str(group) for group in os.getgroups()],
        "security_opt": ["no-new-privileges"],
        "network_mode": "host",
        "pid_mode": "host",
        "shm_size": SHM_SIZE,
    }
    if NVIDIA_DRIVER.exists():
        from docker.types import DeviceRequest

        arguments["device_requests"] = [DeviceRequest(count=-1, capabilities=[["gpu"]])]
    return arguments


def passed_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that a step in a container gets: the store, credentials, tracking, and what the campaign set."""
    passed = {
        name: value
        for name, value in environment.items()
        if name not in IMAGES_OWN and (name.startswith(PASSED_PREFIXES) or name.upper() in PASSED_NAMES)
    }
    return passed | {CACHE_VARIABLE: str(cache_root())}


def run_container(
    client: "DockerClient", image: str, command: list[str], volumes: dict[str, Any], **arguments: Any
) -> int:
    """Run a container to its end, print what it prints, remove it, and give its exit code.

    The signature is that of `kfp.local.docker_task_handler.run_docker_container`, in whose place this stands.
    """
    from docker.errors import APIError

    arguments["environment"] = {**arguments.get("environment", {}), "ROBOIMI_IMAGE": image}
    container = client.containers.run(image, command, detach=True, volumes=volumes, **arguments)
    try:
        for chunk in container.logs(stream=True, follow=True):
            print(chunk.decode(errors="replace"), end="")
        return container.wait()["StatusCode"]
    except APIError as error:
        if error.status_code not in GONE:
            raise
        print("error: The container was removed from outside before it ended.")
        return 1
    finally:
        remove_container(container)


def _mounts(request: LocalRequest, passed: Mapping[str, str]) -> "list[Mount]":
    from docker.types import Mount

    if LOGS_VARIABLE in passed:
        Path(passed[LOGS_VARIABLE]).mkdir(parents=True, exist_ok=True)
    folders = dict.fromkeys(_folders(request), False)
    for value in passed.values():
        # A variable that names a file, such as one with certificates, comes with the file.
        if os.path.isabs(value) and os.path.exists(value):
            folders.setdefault(Path(value), not os.path.isdir(value))
    return [Mount(str(path), str(path), type="bind", read_only=only) for path, only in sorted(folders.items())]


def _folders(request: LocalRequest) -> Iterator[Path]:
    """What the steps read and write, made where it is not there yet: the engine would make it root's."""
    made = [cache_root(), Path(request.workspace_root), Path(request.pipeline_root)]
    store = request.arguments["store"]
    if "://" not in store:
        made.append(Path(store).expanduser().absolute())
    for folder in made:
        folder.mkdir(parents=True, exist_ok=True)
    yield cache_root()
    if "://" not in store:
        yield made[-1]
    dataset = request.arguments["dataset"]
    if "://" not in dataset:
        yield resolve_dataset(dataset).root
    encoder = EncoderSpec.parse(request.arguments["encoder"])
    if encoder.folder is not None and not encoder.is_standin:
        yield encoder.folder
