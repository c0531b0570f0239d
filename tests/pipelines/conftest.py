"""Helpers of the pipeline tests: the command line in a process of its own."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def pipelines_environment() -> dict[str, str]:
    """The environment of a command: this checkout, one thread, a wide terminal."""
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "160"}


@pytest.fixture(scope="session")
def run_pipelines() -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """`run_pipelines("compile", "-o", ...)`: run `python -m pipelines` from the checkout."""

    def run(*arguments: str, timeout: float = 120) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "pipelines", *arguments]
        environment = pipelines_environment()
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=timeout)

    return run
