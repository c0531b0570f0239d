"""The training command and function at their edges: bad settings, a finished training, nothing left lying about."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from roboimi.errors import ConfigError, DataError
from roboimi.vla.train_vla import train
from roboimi.vla.training.records import TrainResult, differing_fields

ROOT = Path(__file__).parents[2]


def command(*arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "roboimi.vla.train_vla", *arguments],
        cwd=cwd,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("task.state_dim=13", "task.state_dim=13 .* has 14"),
        ("task.action_dim=7", "task.action_dim=7 .* has 14"),
        ("task.control_hz=50", "task.control_hz=50 .* has 25"),
        ("task.environment_state_dim=6", "task.environment_state_dim=6 .* has 7"),
        ("pred_horizon=21", r"pred_horizon=21 and episode_\d+.hdf5 .* only 20 frames"),
    ],
)
def test_settings_that_contradict_the_dataset_are_one_sentence_before_any_work(make_run, store, override, says):
    with pytest.raises(ConfigError, match=says) as raised:
        train(make_run(override), store=store)
    assert raised.value.exit_code == 2
    assert list(store.root.iterdir()) == []


def test_cameras_count_only_for_a_policy_that_sees(make_run, store):
    cameras = "task.cameras=[top,right,left]"  # another order is another view axis
    with pytest.raises(ConfigError, match=r"task.cameras=\['top', 'right', 'left'\].*\['top', 'left', 'right'\]"):
        train(make_run(cameras, backbone="siglip2_diffusion"), store=store)
    assert train(make_run(cameras, backbone="blind"), store=store).steps == 6


def test_a_dataset_without_the_privileged_state_is_refused(make_run, store, tiny_dataset_maker):
    plain = tiny_dataset_maker(image_size=(16, 16), environment_state_dim=0)
    run = dataclasses.replace(make_run(), dataset=str(plain.root))
    with pytest.raises(ConfigError, match=r"environment_state_dim=7 .* has 0"):
        train(run, store=store)
    blind = dataclasses.replace(make_run(backbone="blind"), dataset=str(plain.root))
    assert train(blind, store=store).steps == 6


def test_an_edited_dataset_is_another_training_and_a_named_digest_refuses_it(make_run, store, dataset):
    run = dataclasses.replace(make_run(), dataset=f"{dataset.root}@sha256:{'0' * 64}")
    with pytest.raises(DataError, match="has the digest"):
        train(run, store=store)


def test_a_result_survives_its_document():
    result = TrainResult(
        "trainings/a", "trainings/a/checkpoints/b", "c" * 64, 6, 1, 0.5, None, 9, 1.5, 2, {"mode": "x"}
    )
    again = TrainResult.from_document(result.to_document())
    assert again == dataclasses.replace(result, adopted=True)


def test_differing_fields_are_named_by_their_path():
    before = {"config": {"train": {"seed": 0, "betas": [0.9, 0.95]}, "gone": 1}, "dataset": "a"}
    now = {"config": {"train": {"seed": 1, "betas": (0.9, 0.95)}, "new": 1}, "dataset": "a"}
    assert differing_fields(before, now) == ["config.gone", "config.new", "config.train.seed"]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ((), 2, "dataset is not set"),
        (("dataset=/nowhere",), 3, "Dataset folder /nowhere is not there"),
        (("dataset=/nowhere", "hed=small"), 2, "Could not override 'hed'"),
        (("dataset=/nowhere", "num_action_steps=99"), 2, "num_action_steps=99"),
    ],
)
def test_the_command_says_what_is_wrong_in_one_line_and_leaves_nothing(tmp_path, arguments, code, says):
    result = command(*arguments, cwd=tmp_path)
    assert result.returncode == code
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert says in line
    assert list(tmp_path.iterdir()) == []


FIND_AND_REPORT = """
import sys
from roboimi.storage.store import open_store
from roboimi.vla.config import TrainRun
from roboimi.vla.train_vla import train
result = train(TrainRun.from_config({config!r}), store=open_store({store!r}))
print(result.adopted, result.policy_digest, "torch" in sys.modules)
"""


def test_a_finished_training_is_found_without_a_deep_learning_library(make_run, store):
    run = make_run()
    digest = train(run, store=store).policy_digest
    code = FIND_AND_REPORT.format(config=run.config, store=str(store.root))
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["True", digest, "False"]


def test_the_command_prints_where_the_checkpoint_lies_and_writes_nothing_else(tmp_path, tiny_overrides, dataset):
    overrides = [*tiny_overrides, "backbone=blind", "train.tracking=offline", f"dataset={dataset.root}", "store=store"]
    first = command(*overrides, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith(f"trained {tmp_path}/store/trainings/")
    checkpoint = Path(first.stdout.split()[1])
    assert (checkpoint / "MANIFEST.json").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"store", dataset.root.name}
    (training,) = (tmp_path / "store" / "trainings").iterdir()
    assert list((training / "swanlab").glob("run-*/run-*.swanlab"))
    second = command(*overrides, cwd=tmp_path)
    assert second.stdout == f"found {checkpoint}\n"
