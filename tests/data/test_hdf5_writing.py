"""Protects recording and import on a full disk: an error, no crash of the process, nothing left behind."""

import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from roboimi.vla.data.hdf5_writing import HDF5Writer

# A limit on the size of files stands in for the full disk: the same failing writes, in the same places.
WRITE = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from roboimi.errors import DiskFullError
from roboimi.vla.data.contract import DatasetContract
from roboimi.vla.data.episode import write_episode, write_episode_frames

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, 600_000))
contract = DatasetContract(2, 2, 0, ("a", "b"), 64, 96, 25)
rng, T = np.random.default_rng(0), 60
arrays = {"action": rng.normal(size=(T, 2)), "observations/qpos": rng.normal(size=(T, 2))}
arrays["observations/timestamp"] = np.arange(T) / 25
images = {camera: rng.integers(0, 256, (T, 64, 96, 3), np.uint8) for camera in "ab"}
path = Path(sys.argv[2]) / "episode_0.hdf5"
try:
    if sys.argv[1] == "whole":
        named = {f"observations/images/{camera}": array for camera, array in images.items()}
        write_episode(path, arrays | named, contract, {})
    else:
        frames = ({camera: array[t] for camera, array in images.items()} for t in range(T))
        write_episode_frames(path, arrays, frames, contract, {})
except DiskFullError as error:
    print(error)
"""


@pytest.mark.parametrize("how", ["whole", "frame by frame"])
def test_a_full_disk_is_an_error_and_not_a_crash(tmp_path, how):
    result = subprocess.run(
        [sys.executable, "-c", WRITE, how, str(tmp_path)], capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "No room on the disk" in result.stdout
    assert result.stderr == ""
    assert list(tmp_path.iterdir()) == []


def test_what_is_written_is_what_h5py_reads(tmp_path):
    rows = np.random.default_rng(0).normal(size=(50, 3))
    with HDF5Writer(tmp_path / "a.hdf5") as writer:
        writer.file.create_dataset("group/rows", data=rows, chunks=(7, 3), compression="gzip", fletcher32=True)
        writer.file["group/rows"][4] = 1.5
        writer.file.attrs["name"] = "x"
        writer.check()
    rows[4] = 1.5
    with h5py.File(tmp_path / "a.hdf5") as file:
        assert np.array_equal(file["group/rows"], rows)
        assert file.attrs["name"] == "x"


def test_an_error_of_the_caller_is_not_replaced(tmp_path):
    with pytest.raises(KeyError, match="mine"), HDF5Writer(tmp_path / "a.hdf5"):
        raise KeyError("mine")
    assert h5py.File(tmp_path / "a.hdf5").keys() == set()


def test_a_folder_that_is_not_there_is_the_system_s_own_error(tmp_path):
    with pytest.raises(FileNotFoundError), HDF5Writer(Path(tmp_path / "none" / "a.hdf5")):
        pass
