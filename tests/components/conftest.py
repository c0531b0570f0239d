"""Helpers of the component tests: artifacts as KFP hands them to a component's function."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kfp import dsl

from roboimi.storage.folder_store import FolderStore
from roboimi.storage.store import open_store

Artifact = type[dsl.Artifact]


@pytest.fixture
def artifact(tmp_path: Path) -> Callable[[Artifact, str], Any]:
    """`artifact(dsl.Dataset, "validated")`: an output artifact at a path that does not exist yet."""

    def make(kind: Artifact, name: str) -> Any:
        (tmp_path / "artifacts").mkdir(exist_ok=True)
        return kind(name=name, uri=str(tmp_path / "artifacts" / name))

    return make


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return open_store(tmp_path / "store")
