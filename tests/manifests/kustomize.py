"""Builds the shipped manifests with the real kustomize, for the tests."""

import functools
import os
import subprocess
from pathlib import Path
from typing import Any

import yaml
from minio_server import find_tool

MANIFESTS = Path(__file__).resolve().parents[2] / "manifests"
BUILT = ("base", "overlays/minio", "overlays/strict", "overlays/gpu", "overlays/kueue", "policies")
"""What a site builds as it is; secrets want a file first, and overlays/argo-retry is a part of somebody else's."""


def kustomize(folder: Path) -> subprocess.CompletedProcess[str]:
    """`kustomize build` of a folder."""
    # No variable of a developer's: a line of an .env file without `=` would be filled from it.
    environment = {"PATH": os.environ.get("PATH", ""), "HOME": os.environ.get("HOME", "/")}
    command = [find_tool("kustomize"), "build", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


@functools.cache
def built_text(folder: str) -> str:
    """The YAML of one of the folders below `manifests`."""
    done = kustomize(MANIFESTS / folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


def build(folder: str) -> list[dict[str, Any]]:
    """The objects of one of the folders below `manifests`."""
    return [document for document in yaml.safe_load_all(built_text(folder)) if document]


def one(objects: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    """The only object of that kind and name."""
    (found,) = (item for item in objects if item["kind"] == kind and item["metadata"]["name"] == name)
    return found


def kinds(objects: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """All objects of a kind."""
    return [item for item in objects if item["kind"] == kind]
