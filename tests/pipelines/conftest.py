"""Helpers of the pipeline tests: the command line in a process of its own."""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def pipelines_environment(temporary: Path) -> dict[str, str]:
    """The environment of a command: this checkout, one thread, temporary files where pytest removes them."""
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TMPDIR": str(temporary)}


@pytest.fixture(scope="session")
def run_pipelines(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """`run_pipelines("compile", "-o", ...)`: run `python -m pipelines` from the checkout."""

    own = pipelines_environment(tmp_path_factory.mktemp("temporary"))

    def run(
        *arguments: str, timeout: float = 120, environment: Mapping[str, str] | None = None
    ) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "pipelines", *arguments]
        variables = {**own, **(environment or {})}
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=variables, timeout=timeout)

    return run
