"""Recording: the same dataset whatever the workers and interruptions, nothing half-written, nothing mixed up."""

import contextlib
import fcntl
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import h5py
import numpy as np
import pytest

import roboimi.envs.record as record_module
from roboimi.envs.demonstration import demonstrate
from roboimi.envs.images import resize_frame
from roboimi.envs.recipe import Recipe
from roboimi.envs.record import RecordingError, record, record_episode
from roboimi.envs.transfer_cube import TransferCubeEnv
from roboimi.errors import ConfigError, DataError, DiskFullError, HeldByAnotherError, RenderError, StoreError
from roboimi.vla.data.manifest import read_manifest, resolve_dataset
from roboimi.vla.data.validate.validate import validate_dataset

# One small camera: what is tested here does not depend on the number of pixels.
SMALL = {"cameras": ("front",), "frame_size": (48, 48), "image_size": (32, 32)}
RECORD_IN_A_PROCESS = """
import signal
import sys
from roboimi.envs.record import record
if __name__ == "__main__":
    # As under a terminal; a shell's background jobs, these tests' own perhaps, are started with SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    record(sys.argv[1], episodes=4, workers=2, cameras=("front",), frame_size=(48, 48), image_size=(32, 32))
"""


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Four episodes recorded without interruption by one worker, and their digest."""
    out = tmp_path_factory.mktemp("recorded")
    return out, record(out, episodes=4, workers=1, **SMALL)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def read(path):
    with h5py.File(path) as file:
        arrays = {}
        file.visititems(lambda name, item: arrays.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
        return arrays, dict(file.attrs)


def test_folder_is_a_dataset_and_nothing_else(recorded):
    out, digest = recorded
    episodes = [f"episode_{index:06d}.hdf5" for index in range(4)]
    assert names(out) == ["MANIFEST.json", "RECIPE.json", *episodes]
    ref = resolve_dataset(f"{out}@sha256:{digest}")
    assert ref.contract.cameras == ("front",)
    assert ref.contract.image_shape == (32, 32, 3)
    assert (ref.contract.state_dim, ref.contract.action_dim, ref.contract.fps) == (14, 14, 25)
    assert ref.contract.state_names[6] == "left_gripper"
    split = ref.manifest.split
    assert (len(split["train"]), len(split["validation"])) == (3, 1)
    assert ref.manifest.source["recipe"]["noise_std"] == 0.01


def test_a_recording_passes_the_validation_without_a_finding(recorded, tmp_path):
    copy = shutil.copytree(recorded[0], tmp_path / "copy")  # validation writes its verdict beside the manifest
    assert validate_dataset(resolve_dataset(copy)).findings == ()


def test_episode_holds_what_the_expert_saw_and_was_meant_to_do(recorded):
    out, _ = recorded
    arrays, attrs = read(out / "episode_000002.hdf5")
    env = TransferCubeEnv(require_release=True, frame_height=48, frame_width=48)
    with contextlib.closing(env):
        again = demonstrate(
            env, 2, observe=lambda env: {"image": resize_frame(env.render_cameras(["front"])["front"], (32, 32))}
        )
    np.testing.assert_array_equal(arrays["observations/images/front"], again.arrays.pop("image"))
    for name, expected in again.arrays.items():
        np.testing.assert_array_equal(arrays[name], expected, err_msg=name)
    assert not np.array_equal(arrays["action"], again.executed)
    assert {name: attrs[name] for name in ("sim", "success", "seed", "stage", "task", "fps")} == {
        "sim": True,
        "success": True,
        "seed": 2,
        "stage": 4,
        "task": "transfer_cube",
        "fps": 25,
    }


def test_same_bytes_whatever_the_number_of_workers(recorded, tmp_path):
    _, digest = recorded
    assert record(tmp_path, episodes=4, workers=3, **SMALL) == digest


def test_finished_recording_is_recognised_at_once(recorded):
    out, digest = recorded
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    started = time.monotonic()
    assert record(out, episodes=4, **SMALL) == digest
    assert time.monotonic() - started < 0.5
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before


@pytest.mark.parametrize("how", ["kill -9", "Ctrl-C"])
def test_interrupted_recording_goes_on_to_the_same_dataset(recorded, tmp_path, how):
    _, digest = recorded
    program = tmp_path / "program.py"
    program.write_text(RECORD_IN_A_PROCESS)
    out = tmp_path / "out"
    process = subprocess.Popen([sys.executable, program, out], start_new_session=True, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: list(out.glob("episode_*.hdf5")))
        if how == "kill -9":
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to every process of the group
        assert process.wait() != 0
        wait_until(lambda: not group_lives(process.pid))  # workers must not go on writing behind our back
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    finished = {path.name: path.stat().st_mtime_ns for path in out.glob("episode_*.hdf5")}
    assert 1 <= len(finished) < 4
    assert not (out / "MANIFEST.json").exists()
    (out / ".writing-episode_000003.hdf5-abc").write_bytes(b"half an episode")

    assert record(out, episodes=4, workers=1, **SMALL) == digest
    assert names(out) == ["MANIFEST.json", "RECIPE.json", *(f"episode_{index:06d}.hdf5" for index in range(4))]
    for name, changed in finished.items():
        assert (out / name).stat().st_mtime_ns == changed, f"{name} was recorded twice"


def test_hanging_renderer_ends_the_recording(tmp_path, monkeypatch):
    monkeypatch.setattr(record_module, "STALL_S", 0.01)  # no episode is that fast
    with pytest.raises(RenderError, match="rendering seems to hang"):
        record(tmp_path, episodes=2, workers=1, **SMALL)
    assert multiprocessing.active_children() == []
    assert names(tmp_path) == ["RECIPE.json"]


def test_place_that_cannot_be_a_folder_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be a folder to record into"):
        record(tmp_path / "file", episodes=1, **SMALL)


def test_dead_worker_is_one_sentence_and_what_is_finished_stays(recorded, tmp_path):
    _, digest = recorded

    def kill_a_worker():
        wait_until(lambda: list(tmp_path.glob("episode_*.hdf5")))
        multiprocessing.active_children()[0].kill()

    killer = threading.Thread(target=kill_a_worker)
    killer.start()
    with pytest.raises(RecordingError, match="finished episodes are kept"):
        record(tmp_path, episodes=4, workers=1, **SMALL)
    killer.join()
    assert (tmp_path / "episode_000000.hdf5").exists()
    assert record(tmp_path, episodes=4, workers=2, **SMALL) == digest


def test_failed_seed_is_skipped_for_the_next_of_its_episode(tmp_path):
    shaky = {"noise_std": 0.03}
    env = TransferCubeEnv(require_release=True)
    outcomes = [demonstrate(env, seed, **shaky).success for seed in range(12)]
    first = next(seed for seed in range(11) if not outcomes[seed] and outcomes[seed + 1])
    recipe = Recipe(episodes=1, seed=first, **shaky, **SMALL)
    record_episode(tmp_path, recipe, 0)
    _, attrs = read(tmp_path / "episode_000000.hdf5")
    assert attrs["seed"] == first + 1
    assert attrs["success"]


def test_expert_that_never_succeeds_is_said_and_leaves_no_episode(tmp_path, monkeypatch):
    monkeypatch.setattr(record_module, "MAX_ATTEMPTS", 2)
    hurried = Recipe(episodes=1, duration_scale=0.1, control_hz=10, **SMALL)
    with pytest.raises(DataError, match=r"expert failed 2 times on episode 0 .*record slower"):
        record_episode(tmp_path, hurried, 0)
    assert names(tmp_path) == []


def test_another_recipe_is_refused_and_named(recorded):
    out, digest = recorded
    with pytest.raises(DataError, match=r"noise_std 0\.01 instead of 0\.0 and seed 0 instead of 9"):
        record(out, episodes=4, seed=9, noise_std=0.0, **SMALL)
    assert read_manifest(out).digest == digest


def test_recipe_of_a_recording_without_episodes_may_change(tmp_path):
    with pytest.raises(ConfigError, match="no camera 'nowhere'"):
        record(tmp_path, episodes=1, workers=1, **{**SMALL, "cameras": ("nowhere",)})
    record(tmp_path, episodes=1, workers=1, **SMALL)
    assert json.loads((tmp_path / "RECIPE.json").read_text())["cameras"] == ["front"]


def test_foreign_episodes_are_not_mixed_with(tmp_path):
    (tmp_path / "episode_000000.hdf5").write_bytes(b"someone else's")
    with pytest.raises(DataError, match=r"episode_000000\.hdf5, which was not recorded here"):
        record(tmp_path, episodes=1, **SMALL)
    assert names(tmp_path) == ["episode_000000.hdf5"]


def test_second_recorder_is_turned_away(tmp_path):
    folder = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    with pytest.raises(HeldByAnotherError, match="Another process is recording"):
        record(tmp_path, episodes=1, **SMALL)
    os.close(folder)


def test_too_little_room_is_known_before_the_first_episode(tmp_path):
    with pytest.raises(DiskFullError, match=r"100000000 episodes need about \d+\.\d GB"):
        record(tmp_path, episodes=10**8)
    assert names(tmp_path) == []


@pytest.mark.parametrize("settings", [{"episodes": 0}, {"episodes": 1, "seed": -1}, {"episodes": 1, "workers": 0}])
def test_impossible_settings_are_refused(tmp_path, settings):
    with pytest.raises(ConfigError):
        record(tmp_path, **settings)
    assert names(tmp_path) == []


def group_lives(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def wait_until(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.005)
