"""Sound datasets that look like a robot's, shared by the tests of the validation."""

import pytest

from roboimi.vla.data.manifest import DatasetRef
from tests.data.validate.robot_data import write_robot_dataset


@pytest.fixture(scope="session")
def robot_dataset(tmp_path_factory) -> DatasetRef:
    """Twelve sound episodes, shared: not to be written to."""
    return write_robot_dataset(tmp_path_factory.mktemp("robot") / "dataset")


@pytest.fixture
def small_robot_dataset(tmp_path) -> DatasetRef:
    """Three sound episodes to change."""
    return write_robot_dataset(tmp_path / "dataset", episodes=3, frames=40)
