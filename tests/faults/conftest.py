"""What the fault campaigns share: one tiny dataset, the unkilled training to compare with, and a place for results."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch._dynamo

import roboimi.vla.training.session
from roboimi.storage.store import open_store
from roboimi.vla.config import TrainRun
from tests.conftest import make_tiny_dataset
from tests.faults.harness import OVERRIDES, final_state, fork_training

LOADED = (safetensors.torch, torch._dynamo, roboimi.vla.training.session)
"""Loaded here once, before anything is forked: the imports of a training take seconds."""
STEPS = 12


@pytest.fixture(autouse=True)
def _quiet_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROBOIMI_REVISION", "tested-dirty")
    for name in ("ROBOIMI_PROGRESS", "ROBOIMI_LOGS", "KFP_RUN_ID"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def make_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., TrainRun]:
    """`make_run("train.steps=8")`: a training of hundredths of a second a step."""
    dataset = make_tiny_dataset(tmp_path_factory.mktemp("faults") / "data", image_size=(16, 16))

    def make(*overrides: str) -> TrainRun:
        everything = [*OVERRIDES, f"train.steps={STEPS}", *overrides]
        return TrainRun.from_overrides(everything, dataset=str(dataset.root), encoder="standin")

    return make


@pytest.fixture(scope="session")
def unkilled(make_run, tmp_path_factory) -> Callable[..., dict]:
    """The final state of the training that nothing happens to, made once for each set of overrides."""
    known: dict[tuple[str, ...], dict] = {}

    def final(*overrides: str) -> dict:
        if overrides not in known:
            uri = str(tmp_path_factory.mktemp("unkilled"))
            os.environ["ROBOIMI_REVISION"] = "tested-dirty"
            child = fork_training(make_run(*overrides), uri)
            assert child.end() == 0, child.said[-1]
            known[overrides] = final_state(open_store(uri), child.last("result"))
        return known[overrides]

    return final


@pytest.fixture
def note(request: pytest.FixtureRequest) -> Callable[..., None]:
    """`note(n=200, lost=0)`: print a campaign's figures, and append them to the file ROBOIMI_FAULTS_REPORT names."""

    def write(**figures: object) -> None:
        line = json.dumps({"test": request.node.name, **figures})
        print(line)
        if path := os.environ.get("ROBOIMI_FAULTS_REPORT"):
            with open(Path(path), "a") as file:
                file.write(line + "\n")

    return write
