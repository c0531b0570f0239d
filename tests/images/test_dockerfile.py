"""Protects how images are built: nothing floats, nothing runs as root, nothing of the builder stays inside."""

import re
import subprocess

import pytest

from components.images import CPU_IMAGE, GPU_IMAGE
from tests.images.conftest import IMAGES, ROOT, pyproject

TEXT = (IMAGES / "Dockerfile").read_text()
TARGETS = ("cpu", "gpu")


def instructions(text: str) -> list[tuple[str, str]]:
    """Instruction and its arguments, continued lines joined, comments left out."""
    lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    joined = re.sub(r"\\\n\s*", " ", lines)
    return [tuple(line.split(None, 1)) for line in joined.splitlines() if line.strip()]


def stage(name: str) -> list[tuple[str, str]]:
    """The instructions of one stage."""
    found, here = [], False
    for word, rest in instructions(TEXT):
        if word == "FROM":
            here = rest.endswith(f" AS {name}")
        elif here:
            found.append((word, rest))
    assert found, f"there is no stage {name}"
    return found


def test_every_stage_stands_on_the_base_that_was_named():
    stages = set()
    for word, rest in instructions(TEXT):
        if word == "FROM":
            source, name = rest.split(" AS ")
            assert source == "${BASE_IMAGE}" or source in stages
            stages.add(name)
    assert set(TARGETS) <= stages
    (default,) = re.findall(r"^ARG BASE_IMAGE=(\S+)$", TEXT, re.MULTILINE)
    # The name of what scripts/images.sh makes: a registry in it would be asked for something of that name.
    assert default == "roboimi-base:bookworm"
    assert f"own_base={default.split(':')[0]}:$suite" in (ROOT / "scripts" / "images.sh").read_text()


def test_nothing_floats_and_no_host_is_named():
    for path in (*IMAGES.iterdir(), ROOT / "scripts" / "images.sh", ROOT / ".dockerignore"):
        text = path.read_text()
        assert not re.search(r"\blatest\b", text), path
        assert not re.search(r"://[a-z0-9]", text), path
        assert not re.search(r"\b[a-z0-9-]+\.(io|com|net|dev)\b", text), path
        if path.name in {"Dockerfile", "install", "with-index"}:
            assert not re.search(r"\b(curl|wget|ADD|git clone)\b", text), path


def test_every_installation_is_locked_by_hashes():
    script = (IMAGES / "install").read_text()
    commands = [rest for word, rest in instructions(TEXT) if word == "RUN" and "pip install" in rest]
    commands += [line for line in script.splitlines() if "pip install" in line]
    assert len(commands) == 3
    for command in commands:
        assert "--require-hashes" in command or "--offline" in command
    # Source distributions are built with a locked setuptools too.
    assert "--build-constraints /requirements/build.lock" in script
    assert "--offline" in next(rest for word, rest in stage("wheel") if "uv build" in rest)


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_runs_as_a_number_in_the_group_of_root(target):
    users = [rest for word, rest in stage(target) if word == "USER"]
    assert users == ["1000:0"]
    after = [word for word, _ in stage(target)[[word for word, _ in stage(target)].index("USER") :]]
    assert "RUN" not in after


@pytest.mark.parametrize("target", TARGETS)
def test_what_changes_with_every_commit_comes_last(target):
    words = [word for word, _ in stage(target)]
    assert words[0] == "RUN", "the code is the last layer; a WORKDIR after it would be another"
    assert not {"WORKDIR", "COPY"} & set(words)
    assert words.index("ARG") > max(index for index, word in enumerate(words) if word in {"RUN", "COPY", "USER"})
    revision = [rest for word, rest in stage(target) if word == "ENV"][-1]
    assert revision == "ROBOIMI_REVISION=$REVISION"
    (labels,) = [rest for word, rest in stage(target) if word == "LABEL"]
    for name in ("revision", "source", "version"):
        assert f"org.opencontainers.image.{name}=${name.upper()}" in labels


@pytest.mark.parametrize(("target", "gl"), [("cpu", "disable"), ("gpu", "egl")])
def test_an_image_can_be_run_by_any_user(target, gl):
    environment = " ".join(rest for word, rest in stage(target) if word == "ENV").split()
    assert {"HOME=/tmp", f"MUJOCO_GL={gl}"} <= set(environment)
    assert ("NVIDIA_DRIVER_CAPABILITIES=all" in environment) == (target == "gpu")


def test_there_is_no_compiler():
    packages = re.findall(r"apt-get install ([^&}]+)", " ".join(rest for _, rest in instructions(TEXT)))
    names = {name for found in packages for name in found.replace(";", " ").split() if not name.startswith("-")}
    assert names == {"python3-venv", "libegl1", "libgl1", "libegl-mesa0", "libgl1-mesa-dri"}
    assert not any("python3-venv" in rest for _, rest in stage("gpu-dependencies"))


def test_what_a_builder_knows_is_no_argument_of_the_build():
    arguments = {rest.split("=")[0] for word, rest in instructions(TEXT) if word == "ARG"}
    assert arguments == {"BASE_IMAGE", "REVISION", "SOURCE", "VERSION"}
    for word, rest in instructions(TEXT):
        if "with-index " in rest and word == "RUN":
            assert "--mount=type=secret,id=index" in rest
            assert "--mount=type=secret,id=certificates" in rest


def test_components_name_the_images_that_are_built():
    version = pyproject()["project"]["version"]
    assert f"roboimi-cpu:{version}" == CPU_IMAGE
    assert f"roboimi-gpu:{version}" == GPU_IMAGE


def test_an_unknown_image_is_one_sentence():
    done = subprocess.run([ROOT / "scripts" / "images.sh", "tpu"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "error: there is no image 'tpu': choose cpu, gpu or base.\n"


def test_without_a_client_it_is_said_what_to_install():
    done = subprocess.run(
        [ROOT / "scripts" / "images.sh"], capture_output=True, text=True, env={"PATH": "/usr/bin:/bin", "DOCKER": "no"}
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: there is no docker client: ")
