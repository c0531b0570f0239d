"""Protects episodes whose images come one frame at a time: the same file as when they come at once, or none."""

import numpy as np
import pytest

from roboimi.errors import DataError
from roboimi.vla.data.contract import DatasetContract
from roboimi.vla.data.episode import EpisodeFile, write_episode, write_episode_frames

CONTRACT = DatasetContract(2, 3, 0, ("top", "left"), 6, 8, 10)
FRAMES = 5


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    vectors = {"action": rng.normal(size=(FRAMES, 3)), "observations/qpos": rng.normal(size=(FRAMES, 2))}
    return vectors | {"observations/timestamp": np.arange(FRAMES) / 10}


def frames(count=FRAMES, shape=(6, 8, 3), dtype=np.uint8):
    for number in range(count):
        yield {"top": np.full(shape, number, dtype), "left": np.full((6, 8, 3), 100 + number, np.uint8)}


def test_frames_are_what_a_whole_array_would_be(arrays, tmp_path):
    write_episode_frames(tmp_path / "a.hdf5", arrays, frames(), CONTRACT, {"sim": False})
    images = {f"observations/images/{c}": np.stack([frame[c] for frame in frames()]) for c in CONTRACT.cameras}
    write_episode(tmp_path / "b.hdf5", arrays | images, CONTRACT, {"sim": False})
    with EpisodeFile(tmp_path / "a.hdf5", CONTRACT) as a, EpisodeFile(tmp_path / "b.hdf5", CONTRACT) as b:
        assert np.array_equal(a.images(range(FRAMES)), b.images(range(FRAMES)))
        assert np.array_equal(a.action(), b.action())
        assert a.attrs() == b.attrs() == {"sim": False, "fps": 10}


@pytest.mark.parametrize(
    ("given", "word"),
    [
        (frames(FRAMES + 1), "more than the 5 frames"),
        (frames(FRAMES - 1), "4 frames for 5 rows"),
        (frames(shape=(6, 9, 3)), r"top as uint8 \(6, 9, 3\)"),
        (frames(dtype=np.float32), "top as float32"),
    ],
)
def test_other_frames_than_the_rows_ask_for_leave_nothing(arrays, tmp_path, given, word):
    with pytest.raises(DataError, match=word):
        write_episode_frames(tmp_path / "a.hdf5", arrays, given, CONTRACT, {})
    assert list(tmp_path.iterdir()) == []
