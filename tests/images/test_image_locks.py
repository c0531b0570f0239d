"""Protects what is inside the images: the locked versions of the tests, no torch where none is needed, one source."""

import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.images.conftest import REQUIREMENTS, pyproject

LOCKS = ("cpu", "gpu", "executor", "build")
PIN = re.compile(r"^(?P<name>[a-z0-9-]+)==(?P<version>\S+)")
HEAVY = {"torch", "transformers", "triton", "nvidia-cublas", "swanlab", "imageio-ffmpeg", "pyarrow", "av"}


def pins(path: Path) -> set[tuple[str, str]]:
    """Name and version of every entry; some have one version for each Python."""
    return {(match["name"], match["version"]) for line in path.read_text().splitlines() if (match := PIN.match(line))}


def names(lock: str) -> set[str]:
    return {name for name, _ in pins(REQUIREMENTS / f"{lock}.lock")}


@pytest.mark.parametrize("lock", LOCKS)
def test_every_entry_is_pinned_with_its_hashes_and_without_an_address(lock):
    entries = re.split(r"\n(?=\S)", (REQUIREMENTS / f"{lock}.lock").read_text().strip())
    assert entries
    for entry in entries:
        assert PIN.match(entry), entry
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", entry), entry
        assert "://" not in entry


@pytest.mark.parametrize("lock", LOCKS)
def test_images_hold_the_versions_that_the_tests_ran_with(lock):
    assert pins(REQUIREMENTS / f"{lock}.lock") <= pins(REQUIREMENTS / "all.lock")


@pytest.mark.parametrize(("lock", "extras"), [("cpu", ()), ("gpu", ("policy", "video", "tracking"))])
def test_a_lock_satisfies_what_the_package_asks_for(lock, extras):
    project = pyproject()["project"]
    wanted = [*project["dependencies"], *(item for extra in extras for item in project["optional-dependencies"][extra])]
    locked = pins(REQUIREMENTS / f"{lock}.lock")
    for text in wanted:
        requirement = Requirement(text)
        versions = [version for name, version in locked if name == canonicalize_name(requirement.name)]
        assert versions, f"{lock}.lock lacks {requirement.name}: run `make lock`"
        assert all(requirement.specifier.contains(version) for version in versions), text


def test_the_cpu_image_has_no_torch():
    assert not HEAVY & names("cpu")
    assert {"torch", "transformers", "swanlab", "imageio-ffmpeg"} <= names("gpu")


def test_of_kfp_there_is_only_what_runs_a_component():
    assert names("executor") == {"kfp"}
    for lock in ("cpu", "gpu"):
        assert not names(lock) & {"kfp", "kubernetes", "google-cloud-storage", "docker", "pytest", "ruff"}
