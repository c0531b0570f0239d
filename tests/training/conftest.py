"""A training of seconds: the real head, one layer of it, on a real dataset with small pictures."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from roboimi.storage.folder_store import FolderStore
from roboimi.storage.store import open_store
from roboimi.vla.config import TrainRun
from roboimi.vla.data.manifest import DatasetRef
from roboimi.vla.training.device import cpu_threads
from tests.tiny_training import TINY_TRAINING

TINY_OVERRIDES = (*TINY_TRAINING, "train.steps=6")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Networks this small only lose time to a second thread."""
    with cpu_threads(1):
        yield


@pytest.fixture(autouse=True)
def _one_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Records of the same training are compared; a commit between two of them is none of their business."""
    monkeypatch.setenv("ROBOIMI_REVISION", "tested-dirty")


@pytest.fixture
def tiny_overrides() -> tuple[str, ...]:
    """The Hydra overrides of the tiny training, without its backbone."""
    return TINY_OVERRIDES


@pytest.fixture
def dataset(tiny_dataset_maker) -> DatasetRef:
    """Three episodes of 20 frames, one of them held out; pictures of 16 x 16, which no arm here looks at."""
    return tiny_dataset_maker(image_size=(16, 16))


@pytest.fixture
def make_run(dataset: DatasetRef) -> Callable[..., TrainRun]:
    """`make_run("train.steps=8")`: the tiny training with more overrides."""

    def make(*overrides: str, backbone: str = "privileged_state") -> TrainRun:
        return TrainRun.from_overrides(
            [*TINY_OVERRIDES, f"backbone={backbone}", *overrides], dataset=str(dataset.root), encoder="standin"
        )

    return make


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    """An empty store."""
    return open_store(tmp_path / "store")
