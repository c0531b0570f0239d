"""Protects the images themselves, where an engine has them: any user, a read-only root, no compiler, no secret, small.

Skipped without a Docker engine, and without the images that `make images` builds.
"""

import json
import re

import docker
import pytest

from components.images import CPU_IMAGE, GPU_IMAGE

RESTRICTED = {
    "user": "54321:0",
    "read_only": True,
    "tmpfs": {"/tmp": ""},
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges"],
    "network_mode": "none",
}
"""What a restricted namespace makes of a pod: a user of its choice in group 0, nothing to write but /tmp."""

LARGEST_CPU_IMAGE = 700e6
FACTS = """
import json, os, shutil
os.environ["_KFP_RUNTIME"] = "true"
import kfp.dsl.executor_main
import roboimi.campaign_step, roboimi.reports.report, roboimi.vla.data.validate.validate
from roboimi.envs.scene import load_model
{more}
found["joints"] = load_model(64, 64).njnt
found["programs"] = [name for name in ("gcc", "cc", "c++", "clang", "pip", "uv", "git") if shutil.which(name)]
found["revision"] = os.environ["ROBOIMI_REVISION"]
print(json.dumps(found))
"""
MORE = {
    CPU_IMAGE: "import importlib.util; found = {'torch': bool(importlib.util.find_spec('torch'))}",
    GPU_IMAGE: (
        "from roboimi.envs.render import gl_renderer\nfound = {'renderer': gl_renderer()}\n"
        "import torch, transformers, swanlab, imageio_ffmpeg, roboimi.vla.train_vla\nfound['torch'] = True"
    ),
}
WRITABLE = r"find / -xdev \( -type f -o -type d ! -perm -1000 \) -perm -0002 -print 2>/dev/null; true"


@pytest.fixture(params=[CPU_IMAGE, GPU_IMAGE])
def name(request, engine) -> str:
    if not any(request.param in image.tags for image in engine.images.list()):
        pytest.skip(f"{request.param} is not on this machine: make images")
    return request.param


def run(engine: docker.DockerClient, name: str, *command: str) -> str:
    return engine.containers.run(name, list(command), remove=True, **RESTRICTED).decode()


def test_any_user_can_run_a_step_from_a_read_only_root(engine, name):
    found = json.loads(run(engine, name, "python3", "-c", FACTS.format(more=MORE[name])).splitlines()[-1])
    assert found["torch"] == (name == GPU_IMAGE)
    assert found["joints"] > 10
    assert found["programs"] == []
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", found["revision"])
    if name == GPU_IMAGE:
        assert found["renderer"]


def test_the_command_line_is_the_images_command(engine, name):
    assert run(engine, name).startswith("usage: roboimi ")


def test_nothing_but_temporary_folders_is_open_to_everyone(engine, name):
    assert run(engine, name, "sh", "-c", WRITABLE).split() == []


def test_what_an_image_says_of_itself(engine, name):
    image = engine.images.get(name)
    prefix = "org.opencontainers.image."
    assert {"revision", "source", "version"} <= {label.removeprefix(prefix) for label in image.labels}
    assert image.attrs["Config"]["User"] == "1000:0"
    history = json.dumps(image.history()) + json.dumps(image.attrs["Config"])
    assert "://" not in image.labels[prefix + "revision"] + history.replace(image.labels[prefix + "source"], "")
    assert not re.search(r"(?i)password|token|secret_key|index_url", history)


def test_the_cpu_image_is_small(engine):
    try:
        size = engine.images.get(CPU_IMAGE).attrs["Size"]
    except docker.errors.ImageNotFound:
        pytest.skip(f"{CPU_IMAGE} is not on this machine: make images")
    assert size < LARGEST_CPU_IMAGE
