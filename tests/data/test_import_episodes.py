"""Protects the import of a user's own ACT-style episodes: any dimensions, cameras and size."""

import h5py
import numpy as np
import pytest

from roboimi.errors import ConfigError, DataError
from roboimi.vla.data.import_episodes import ingest
from roboimi.vla.data.manifest import MANIFEST_NAME
from roboimi.vla.data.simple_robot_dataset import SimpleRobotDataset
from roboimi.vla.data.validate.validate import validate_dataset


def act_episode(
    path, *, frames=20, state=16, action=8, cameras=("cam_high", "cam_low"), size=(48, 64), seed=0, **attrs
):
    """An episode as ACT's own recorder lays it out: contiguous arrays, no checksums, no timestamps."""
    rng = np.random.default_rng(seed)
    with h5py.File(path, "w") as file:
        file.attrs["sim"] = True
        file.attrs.update(attrs)
        file["action"] = rng.normal(size=(frames, action)).astype(np.float32)
        file["observations/qpos"] = rng.normal(size=(frames, state))
        file["observations/qvel"] = rng.normal(size=(frames, state))
        for camera in cameras:
            file[f"observations/images/{camera}"] = rng.integers(0, 256, (frames, *size, 3), np.uint8)


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "mine"
    root.mkdir()
    for index in range(12):
        act_episode(root / f"episode_{index}.hdf5", seed=index)
    return root


def test_a_users_own_episodes_become_a_dataset(folder):
    ref = ingest(folder, default_fps=50)
    contract = ref.contract
    assert (contract.state_dim, contract.action_dim, contract.environment_state_dim) == (16, 8, 0)
    assert contract.cameras == ("cam_high", "cam_low")
    assert contract.image_shape == (48, 64, 3)
    assert contract.fps == 50
    assert ref.manifest.source == {"kind": "import", "fps_from": "default"}
    assert len(ref.manifest.episodes) == 12
    assert len(ref.manifest.split["validation"]) == 1
    report = validate_dataset(ref)
    assert report.findings == ()
    item = SimpleRobotDataset(ref, obs_horizon=2, pred_horizon=16)[0]
    assert item["images"].shape == (2, 2, 48, 64, 3)
    assert (item["state"].shape, item["action"].shape) == ((2, 16), (16, 8))
    assert item["state"].dtype == np.float32


def test_a_dataset_with_a_manifest_is_taken_as_it_is(folder):
    first = ingest(folder, default_fps=50)
    written = (folder / MANIFEST_NAME).stat().st_mtime_ns
    assert ingest(folder, default_fps=25) == first
    assert (folder / MANIFEST_NAME).stat().st_mtime_ns == written


def test_the_rate_comes_from_the_attribute_then_from_timestamps(tmp_path):
    act_episode(tmp_path / "episode_0.hdf5", fps=30)
    ref = ingest(tmp_path, default_fps=50)
    assert (ref.contract.fps, ref.manifest.source["fps_from"]) == (30, "attribute")
    (tmp_path / "other").mkdir()
    act_episode(tmp_path / "other" / "episode_0.hdf5")
    with h5py.File(tmp_path / "other" / "episode_0.hdf5", "r+") as file:
        file["observations/timestamp"] = 100 + np.arange(20) * 0.0201
    ref = ingest(tmp_path / "other", default_fps=25)
    assert (ref.contract.fps, ref.manifest.source["fps_from"]) == (50, "timestamps")


def test_an_unknown_rate_is_asked_for(folder):
    with pytest.raises(ConfigError, match="--fps HZ"):
        ingest(folder)
    assert not (folder / MANIFEST_NAME).exists()


def test_cameras_can_be_chosen_and_ordered(folder):
    ref = ingest(folder, default_fps=50, cameras=["cam_low"])
    assert ref.contract.cameras == ("cam_low",)
    assert validate_dataset(ref).passed


def test_episodes_that_differ_from_the_first_are_found_by_validation(folder):
    act_episode(folder / "episode_7.hdf5", cameras=("cam_high",))
    act_episode(folder / "episode_8.hdf5", action=7)
    report = validate_dataset(ingest(folder, default_fps=50))
    assert {(finding.code, finding.episode) for finding in report.errors} == {
        ("E06-camera-set", "episode_7.hdf5"),
        ("E07-shape", "episode_8.hdf5"),
    }


def test_the_environment_state_is_taken_where_there_is_one(tmp_path):
    act_episode(tmp_path / "episode_0.hdf5", fps=50)
    with h5py.File(tmp_path / "episode_0.hdf5", "r+") as file:
        file["observations/environment_state"] = np.zeros((20, 7), np.float32)
    assert ingest(tmp_path).contract.environment_state_dim == 7


def test_compressed_images_are_refused(tmp_path):
    act_episode(tmp_path / "episode_0.hdf5", compress=True)
    with h5py.File(tmp_path / "episode_0.hdf5", "r+") as file:
        for camera in ("cam_high", "cam_low"):
            del file[f"observations/images/{camera}"]
            file[f"observations/images/{camera}"] = np.zeros((20, 900), np.uint8)
    with pytest.raises(DataError, match="compressed images"):
        ingest(tmp_path, default_fps=50)
    assert not (tmp_path / MANIFEST_NAME).exists()


def change_first(tmp_path, change):
    act_episode(tmp_path / "episode_0.hdf5")
    with h5py.File(tmp_path / "episode_0.hdf5", "r+") as file:
        change(file)


def move_to_a_link(file):
    file.move("observations/images/cam_low", "pictures")
    file["observations/images/cam_low"] = h5py.SoftLink("/pictures")


def channels_first(file):
    del file["observations/images/cam_low"]
    file["observations/images/cam_low"] = np.zeros((20, 3, 48, 64), np.uint8)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda f: f.__delitem__("action"), "no /action"),
        (lambda f: f.__delitem__("observations/qpos"), "no /observations/qpos"),
        (lambda f: f.__delitem__("observations/images"), "no camera"),
        (channels_first, r"\(20, 3, 48, 64\)"),
    ],
)
def test_what_no_contract_can_be_made_of_is_refused(tmp_path, change, word):
    change_first(tmp_path, change)
    with pytest.raises(DataError, match=word):
        ingest(tmp_path, default_fps=50)
    assert not (tmp_path / MANIFEST_NAME).exists()


def test_a_link_is_no_camera_and_asking_for_it_is_refused(tmp_path):
    change_first(tmp_path, move_to_a_link)
    with pytest.raises(DataError, match="no camera 'cam_low'"):
        ingest(tmp_path, default_fps=50, cameras=["cam_high", "cam_low"])


def test_an_empty_or_missing_folder_is_one_sentence(tmp_path):
    with pytest.raises(DataError, match="has no episodes"):
        ingest(tmp_path)
    with pytest.raises(DataError, match="is not there"):
        ingest(tmp_path / "none")
