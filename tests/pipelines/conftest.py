"""Helpers of the pipeline tests: the command line in a process of its own, and simulated servers for it."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.pipelines.cluster.simulated_kfp import SimulatedKfp
from tests.pipelines.cluster.simulated_kubernetes import SimulatedKubernetes

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


@pytest.fixture
def kfp(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimulatedKfp]:
    """A simulated KFP server to which the environment leads; it asks for no token."""
    for name in ("KFP_NAMESPACE", "KFP_TOKEN", "KF_PIPELINES_SA_TOKEN_PATH", "KF_PIPELINES_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    with SimulatedKfp() as server:
        monkeypatch.setenv("KFP_HOST", server.url)
        yield server


@pytest.fixture
def kubernetes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[SimulatedKubernetes]:
    """A simulated Kubernetes to which KUBECONFIG leads; namespace kubeflow has the secret roboimi-store."""
    with SimulatedKubernetes() as server:
        monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(tmp_path)))
        yield server
