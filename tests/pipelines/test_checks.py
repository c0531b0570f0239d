"""Protects what is found out before the first step: each of these is one sentence and nothing has been written."""

import shutil

import h5py
import pytest

from pipelines import checks
from pipelines.arms import Arm, load_arms
from roboimi.errors import ConfigError, DataError, DiskFullError, EncoderError
from roboimi.vla.config import compose_config
from roboimi.vla.data.manifest import MANIFEST_NAME


@pytest.fixture
def ref(tiny_dataset_maker):
    return tiny_dataset_maker(cameras=compose_config()["task"]["cameras"], image_size=(8, 8))


def test_a_dataset_is_found_by_its_path_and_by_its_digest(ref):
    assert checks.find_dataset(str(ref.root)).digest == ref.digest
    assert checks.find_dataset(ref.text).digest == ref.digest


def test_episodes_without_a_manifest_get_one(ref):
    (ref.root / MANIFEST_NAME).unlink()
    found = checks.find_dataset(str(ref.root))
    assert len(found.manifest.episodes) == 3
    assert (ref.root / MANIFEST_NAME).is_file()


@pytest.mark.parametrize("name", ["missing", "empty"])
def test_a_folder_without_episodes(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=name):
        checks.find_dataset(str(tmp_path / name))
    assert list((tmp_path / "empty").iterdir()) == []


def test_a_dataset_with_another_digest_than_asked_for(ref):
    with pytest.raises(DataError, match="not 0000"):
        checks.find_dataset(f"{ref.root}@sha256:{'0' * 64}")


def test_the_default_arms_compose(ref):
    checks.check_arms(load_arms("projection") + load_arms("reference"), ["head=small"], ref, "standin")


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("backbone.per_view_output_dmi=96", "per_view_output_dmi"),
        ("backbone=resnet", "resnet"),
        ("train.steps=0", "train.steps=0"),
        ("task.state_dim=13", "task.state_dim=13"),
        ("pred_horizon=64", "frames"),
    ],
)
def test_an_arm_that_cannot_work_is_named(ref, override, part):
    with pytest.raises(ConfigError, match=part) as caught:
        checks.check_arms([Arm("good", ()), Arm("bad", (override,))], ["head=small"], ref, "standin")
    assert str(caught.value).startswith("Arm 'bad': ")
    assert "\n" not in str(caught.value)


def test_data_without_an_environment_state_has_no_privileged_arm(ref, tiny_dataset_maker):
    real = tiny_dataset_maker(environment_state_dim=0, image_size=(8, 8))
    kept, left_out = checks.usable_arms(load_arms("reference"), real)
    assert [arm.name for arm in kept] == ["blind"]
    assert [arm.name for arm in left_out] == ["privileged_state"]
    kept, left_out = checks.usable_arms(load_arms("reference"), ref)
    assert (len(kept), left_out) == (2, [])


def test_an_unknown_encoder():
    assert "stand-in" in checks.check_encoder("standin")
    with pytest.raises(EncoderError, match="not pinned"):
        checks.check_encoder("google/siglip2-base-patch16-256")


def test_too_little_disk(ref, monkeypatch, tmp_path):
    checks.check_disk(tmp_path, ref, arms=1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(DiskFullError, match=r"campaign of 2 arms may need 1\.0 GiB"):
        checks.check_disk(tmp_path, ref, arms=2)


def test_too_little_memory():
    checks.check_memory(1, checks.MEMORY_PER_ARM)
    with pytest.raises(checks.LowMemoryError, match=r"Only 2\.0 GiB of memory are free and 2 arms"):
        checks.check_memory(2, checks.MEMORY_PER_ARM)


def test_memory_is_what_the_control_group_leaves(tmp_path):
    machine = checks.available_memory(tmp_path)
    assert machine > 0
    (tmp_path / "memory.max").write_text("3000\n")
    (tmp_path / "memory.current").write_text("1000\n")
    assert checks.available_memory(tmp_path) == 2000
    (tmp_path / "memory.max").write_text("max\n")
    assert checks.available_memory(tmp_path) > 2000


def test_outputs_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be made"):
        checks.check_writable(tmp_path / "file" / "outputs")


def test_gl_is_there():
    assert checks.check_gl()


def test_an_episode_without_a_camera_is_imported_by_no_one(ref):
    (ref.root / MANIFEST_NAME).unlink()
    with h5py.File(ref.root / "episode_000000.hdf5", "r+") as file:
        del file["observations/images"]
    with pytest.raises(DataError):
        checks.find_dataset(str(ref.root))
    assert not (ref.root / MANIFEST_NAME).exists()
