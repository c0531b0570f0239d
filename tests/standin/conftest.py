"""Rendered scenes that several tests of the stand-in share."""

import pytest

from roboimi.vla.standin.scenes import Scenes, render_scenes


@pytest.fixture(scope="session")
def few_scenes(tmp_path_factory: pytest.TempPathFactory) -> Scenes:
    """Two blocks, 64 scenes."""
    return render_scenes(tmp_path_factory.mktemp("renders"), 64, seed=11)
