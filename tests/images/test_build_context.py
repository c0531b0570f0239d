"""Protects what a build is given, and that the wheel in the images holds all that the package needs at run time."""

import shutil
import subprocess
import zipfile
from pathlib import Path

from docker.utils.build import exclude_paths

from tests.images.conftest import ROOT

WANTED = ("pyproject.toml", "LICENSE", "README.md", "roboimi/cli.py", "roboimi/vla/conf/train_vla.yaml")
WANTED += ("requirements/cpu.lock", "images/Dockerfile", "images/install")
KEPT_OUT = (".git/config", ".venv/bin/python", ".tools/minio", "datasets/mine/episode_000000.hdf5", ".env")
KEPT_OUT += ("outputs/store/trainings/key/LATEST.json", "roboimi/__pycache__/cli.cpython-311.pyc", "swanlog/run")
KEPT_OUT += ("roboimi/vla/__pycache__/x.pyc", "tests/test_cli.py", "pipelines/cli.py", "roboimi.egg-info/PKG-INFO")


def test_a_build_sees_the_package_and_nothing_of_the_user(tmp_path):
    for name in (*WANTED, *KEPT_OUT):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    patterns = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    sent = {name for name in exclude_paths(str(tmp_path), patterns) if (tmp_path / name).is_file()}
    assert sent == set(WANTED)


def test_the_wheel_holds_every_file_of_the_package(tmp_path):
    listed = subprocess.run(["git", "ls-files", "roboimi"], cwd=ROOT, capture_output=True, text=True, check=True)
    tracked = [name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]
    for name in (*tracked, "pyproject.toml", "README.md", "LICENSE"):
        (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / "source" / name)
    command = [ROOT / ".venv/bin/uv", "build", "-q", "--offline", "--wheel", "--no-build-isolation"]
    command += ["--python", ROOT / ".venv/bin/python", "--out-dir", tmp_path]
    subprocess.run(command, cwd=tmp_path / "source", check=True, timeout=60)
    (wheel,) = tmp_path.glob("*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    missing = {name for name in tracked if not name.endswith(".md")} - packed
    assert not missing, "name them under [tool.setuptools.package-data]"
    assert "roboimi = roboimi.cli:main" in zipfile.ZipFile(wheel).read(_named(packed, "entry_points.txt")).decode()


def _named(names: set[str], ending: str) -> str:
    return next(name for name in names if Path(name).name == ending)
