"""Protects episodes on disk: whole or absent, exact on reading, loud when damaged, confined to their own file."""

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from roboimi.errors import DataError, DiskFullError, StoreError
from roboimi.storage.atomic import TEMPORARY_PREFIX, atomic_path
from roboimi.vla.data.contract import DatasetContract
from roboimi.vla.data.episode import EpisodeFile, write_episode
from roboimi.vla.data.hdf5 import open_file, walk

CONTRACT = DatasetContract(
    state_dim=3,
    action_dim=2,
    environment_state_dim=7,
    cameras=("top", "left"),
    image_height=8,
    image_width=10,
    fps=25,
)


def arrays(frames=6, seed=0):
    rng = np.random.default_rng(seed)
    images = {f"observations/images/{c}": rng.integers(0, 256, (frames, 8, 10, 3), np.uint8) for c in ("top", "left")}
    return {
        "action": rng.normal(size=(frames, 2)).astype(np.float32),
        "observations/qpos": rng.normal(size=(frames, 3)).astype(np.float32),
        "observations/timestamp": np.arange(frames) / 25,
        "observations/environment_state": rng.normal(size=(frames, 7)).astype(np.float32),
        **images,
    }


@pytest.fixture
def written(tmp_path):
    data = arrays()
    write_episode(tmp_path / "episode_000000.hdf5", data, CONTRACT, {"seed": 7, "task": "cube", "success": True})
    return tmp_path / "episode_000000.hdf5", data


def test_everything_is_read_back_exactly(written):
    path, data = written
    with EpisodeFile(path, CONTRACT) as episode:
        assert episode.frames == 6
        np.testing.assert_array_equal(episode.action(), data["action"])
        np.testing.assert_array_equal(episode.state(), data["observations/qpos"])
        np.testing.assert_array_equal(episode.timestamp(), data["observations/timestamp"])
        np.testing.assert_array_equal(episode.environment_state(), data["observations/environment_state"])
        assert episode.action().dtype == np.float32
        assert episode.timestamp().dtype == np.float64
        assert episode.attrs() == {"seed": 7, "task": "cube", "success": True, "sim": True, "fps": 25}


@pytest.mark.parametrize("indices", [[0, 1, 2, 3, 4, 5], [3], [0, 0], [5, 1, 1, 4], [4, 3]])
def test_images_come_in_the_order_asked_for_with_cameras_in_contract_order(written, indices):
    path, data = written
    expected = np.stack([data["observations/images/top"], data["observations/images/left"]], axis=1)
    with EpisodeFile(path, CONTRACT) as episode:
        np.testing.assert_array_equal(episode.images(indices), expected[indices])


def test_layout_is_one_checksummed_image_a_chunk(written):
    with h5py.File(written[0]) as file:
        assert file["observations/images/top"].chunks == (1, 8, 10, 3)
        found = []
        file.visititems(lambda name, item: found.append(item.fletcher32) if isinstance(item, h5py.Dataset) else None)
        assert len(found) == 6
        assert all(found)


def test_a_flipped_bit_is_an_error_and_not_other_data(written):
    path, _ = written
    with h5py.File(path) as file:
        chunk = file["observations/images/left"].id.get_chunk_info(4)
    content = bytearray(path.read_bytes())
    content[chunk.byte_offset + 11] ^= 1
    path.write_bytes(content)
    with EpisodeFile(path, CONTRACT) as episode:
        assert episode.images([3]).shape == (1, 2, 8, 10, 3)
        with pytest.raises(DataError, match="images/left at frames 4 to 4"):
            episode.images([4])


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda a: a.pop("action"), "action"),
        (lambda a: a.pop("observations/images/left"), "images/left"),
        (lambda a: a.update({"observations/effort": a["action"]}), "effort"),
        (lambda a: a.update({"observations/qpos": a["observations/qpos"][:, :2]}), "shape"),
        (lambda a: a.update({"observations/qpos": a["observations/qpos"][1:]}), "shape"),
        (lambda a: a.update({"observations/images/top": a["observations/images/top"] / 255.0}), "uint8"),
        (lambda a: a.update({name: array[:0] for name, array in a.items()}), "no frames"),
    ],
)
def test_what_contradicts_the_contract_is_not_written(tmp_path, change, word):
    data = arrays()
    change(data)
    with pytest.raises(DataError, match=word):
        write_episode(tmp_path / "episode_000000.hdf5", data, CONTRACT, {})
    assert list(tmp_path.iterdir()) == []


def test_a_writer_killed_in_the_middle_leaves_no_episode(tmp_path):
    script = f"""
import os, signal, sys
from pathlib import Path
import h5py
from roboimi.storage.atomic import atomic_path
with atomic_path(Path({str(tmp_path / "episode_000000.hdf5")!r})) as temporary:
    h5py.File(temporary, "w").create_dataset("action", data=[1.0])
    os.kill(os.getpid(), signal.SIGKILL)
"""
    result = subprocess.run([sys.executable, "-c", script], check=False)
    assert result.returncode == -signal.SIGKILL
    left = [path.name for path in tmp_path.iterdir()]
    assert all(name.startswith(TEMPORARY_PREFIX) for name in left)
    assert left, "the killed writer should have been in the middle of its file"


def test_an_error_while_writing_leaves_nothing_and_keeps_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def fail():
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError("the body fails")

    with pytest.raises(RuntimeError, match="the body fails"):
        fail()
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert path.read_text() == "old"


def test_no_room_is_one_sentence(tmp_path):
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with pytest.raises(DiskFullError, match="No room"), atomic_path(tmp_path / "file"):
        Path("/dev/full").write_text("x")
    assert list(tmp_path.iterdir()) == []


def test_missing_folder_is_one_sentence(tmp_path):
    with pytest.raises(StoreError, match="cannot be written"):
        write_episode(tmp_path / "none" / "episode_000000.hdf5", arrays(), CONTRACT, {})


def test_missing_and_unreadable_files_are_one_sentence(tmp_path):
    with pytest.raises(DataError, match="is not there"):
        EpisodeFile(tmp_path / "episode_000000.hdf5", CONTRACT).action()
    (tmp_path / "episode_000001.hdf5").write_bytes(b"not HDF5")
    with pytest.raises(DataError, match="cannot be opened as HDF5"):
        EpisodeFile(tmp_path / "episode_000001.hdf5", CONTRACT).action()


def test_opened_on_first_read_and_never_pickled(written):
    path, data = written
    episode = EpisodeFile(path, CONTRACT)
    assert not episode.is_open
    episode.action()
    assert episode.is_open
    copy = pickle.loads(pickle.dumps(episode))
    assert not copy.is_open
    np.testing.assert_array_equal(copy.action(), data["action"])
    episode.close()
    assert not episode.is_open
    copy.close()


def _child(episode, results):
    opened_before = episode.is_open
    results.put((os.getpid(), opened_before, episode.images([2])))


def test_a_forked_child_opens_its_own_handle(written):
    path, data = written
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    with EpisodeFile(path, CONTRACT) as episode:
        episode.images([0])
        child = context.Process(target=_child, args=(episode, results))
        child.start()
        pid, opened_before, images = results.get(timeout=30)
        child.join(timeout=30)
        assert pid != os.getpid()
        assert not opened_before
        np.testing.assert_array_equal(images[0, 0], data["observations/images/top"][2])
        np.testing.assert_array_equal(episode.images([2]), images)


def _replace(path, name, make):
    with h5py.File(path, "r+", libver="latest") as file:
        del file[name]
        make(file, name)


@pytest.mark.parametrize(
    "make",
    [
        lambda file, name: file.__setitem__(name, h5py.SoftLink("/observations/images/top")),
        lambda file, name: file.__setitem__(name, h5py.ExternalLink("other.hdf5", "/secret")),
        lambda file, name: file.create_virtual_dataset(name, _virtual()),
        lambda file, name: file.create_dataset(name, (6, 8, 10, 3), "u1", external=[("secret.raw", 0, 1440)]),
    ],
    ids=["soft link", "external link", "virtual dataset", "external storage"],
)
def test_data_kept_elsewhere_is_refused(written, make):
    path, _ = written
    secret = np.full((6, 8, 10, 3), 42, np.uint8)
    secret.tofile(path.parent / "secret.raw")
    with h5py.File(path.parent / "other.hdf5", "w") as other:
        other["secret"] = secret
    _replace(path, "observations/images/left", make)
    with EpisodeFile(path, CONTRACT) as episode, pytest.raises(DataError, match="refused"):
        episode.images([0])


def _virtual():
    layout = h5py.VirtualLayout((6, 8, 10, 3), "u1")
    layout[:] = h5py.VirtualSource("other.hdf5", "secret", (6, 8, 10, 3))
    return layout


def test_a_linked_group_on_the_way_is_refused(written):
    path, _ = written
    with h5py.File(path, "r+", libver="latest") as file:
        file.move("observations/images", "elsewhere")
        file["observations/images"] = h5py.SoftLink("/elsewhere")
    with EpisodeFile(path, CONTRACT) as episode, pytest.raises(DataError, match="refused"):
        episode.images([0])


def test_groups_that_contain_themselves_are_walked_once(written):
    path, _ = written
    with h5py.File(path, "r+", libver="latest") as file:
        file["observations/images/again"] = file["observations"]
        file["root"] = file["/"]
    with open_file(path) as file:
        names = [name for name, _ in walk(file)]
    assert len(names) == 6


def test_another_shape_than_the_contract_is_one_sentence(written):
    path, _ = written
    _replace(path, "observations/qpos", lambda file, name: file.create_dataset(name, data=np.zeros((6, 4), "f4")))
    with EpisodeFile(path, CONTRACT) as episode, pytest.raises(DataError, match=r"shape \(6, 4\)"):
        episode.state()


def test_images_that_are_not_uint8_are_refused(written):
    path, _ = written
    zeros = np.zeros((6, 8, 10, 3), "f4")
    _replace(path, "observations/images/left", lambda file, name: file.create_dataset(name, data=zeros))
    with EpisodeFile(path, CONTRACT) as episode, pytest.raises(DataError, match="not uint8"):
        episode.images([0])
