"""Protects the dataset's items: right rows, right keys, the right split, and safe hands across processes."""

import multiprocessing
import operator
import pickle
from concurrent.futures import ProcessPoolExecutor

import h5py
import numpy as np
import pytest
from torch.utils.data import DataLoader

from roboimi.errors import ConfigError, DataError
from roboimi.vla.data.simple_robot_dataset import MAX_OPEN_FILES, SimpleRobotDataset


@pytest.fixture
def ref(tiny_dataset_maker):
    return tiny_dataset_maker(image_size=(8, 8), frames=[6, 9, 7])


def raw(ref, file, name):
    with h5py.File(ref.root / file) as handle:
        return handle[name][()]


def test_every_item_holds_the_rows_of_its_window(ref):
    dataset = SimpleRobotDataset(ref, None, obs_horizon=2, pred_horizon=4)
    number = 0
    for entry in ref.manifest.episodes:
        action, state, environment = (
            raw(ref, entry.file, name) for name in ("action", "observations/qpos", "observations/environment_state")
        )
        for frame in range(entry.frames):
            item = dataset[number]
            before = max(frame - 1, 0)
            np.testing.assert_array_equal(item["state"], state[[before, frame]])
            np.testing.assert_array_equal(item["environment_state"], environment[[before, frame]])
            rows = [min(max(frame - 1 + step, 0), entry.frames - 1) for step in range(4)]
            np.testing.assert_array_equal(item["action"], action[rows])
            assert item["action_is_pad"].tolist() == [frame - 1 + step >= entry.frames for step in range(4)]
            number += 1
    assert number == len(dataset) == 22


def test_items_have_the_contract_shapes_and_types(ref):
    item = SimpleRobotDataset(ref, obs_horizon=2, pred_horizon=16)[0]
    described = {name: (array.shape, array.dtype.name) for name, array in item.items()}
    assert described == {
        "state": ((2, 14), "float32"),
        "environment_state": ((2, 7), "float32"),
        "action": ((16, 14), "float32"),
        "action_is_pad": ((16,), "bool"),
        "images": ((2, 3, 8, 8, 3), "uint8"),
    }


def test_no_environment_state_where_the_contract_has_none(tiny_dataset_maker):
    ref = tiny_dataset_maker(image_size=(8, 8), frames=4, environment_state_dim=0, state_dim=5, action_dim=3)
    item = SimpleRobotDataset(ref, obs_horizon=1, pred_horizon=2)[0]
    assert "environment_state" not in item
    assert (item["state"].shape, item["action"].shape) == ((1, 5), (2, 3))


def test_splits_share_no_episode(ref):
    parts = {name: SimpleRobotDataset(ref, name, obs_horizon=1, pred_horizon=1) for name in ("train", "validation")}
    train, validation = ({entry.file for entry in parts[name].entries} for name in ("train", "validation"))
    assert train
    assert validation
    assert not train & validation
    assert len(parts["train"]) + len(parts["validation"]) == 22


def test_nothing_is_opened_before_the_first_item(ref):
    dataset = SimpleRobotDataset(ref, obs_horizon=2, pred_horizon=4)
    assert not dataset._open
    for entry in ref.manifest.episodes:
        ref.path(entry).unlink()
    with pytest.raises(DataError, match="is not there"):
        dataset[0]


def test_pickling_takes_no_handle_along(ref):
    dataset = SimpleRobotDataset(ref, obs_horizon=2, pred_horizon=4)
    expected = dataset[3]
    assert dataset._open
    copy = pickle.loads(pickle.dumps(dataset))
    assert not copy._open
    for name, array in copy[3].items():
        np.testing.assert_array_equal(array, expected[name])


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_other_processes_get_the_same_items(ref, method):
    dataset = SimpleRobotDataset(ref, None, obs_horizon=2, pred_horizon=4)
    expected = [dataset[number] for number in range(len(dataset))]
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context(method)) as pool:
        found = list(pool.map(operator.getitem, [dataset] * len(dataset), range(len(dataset))))
    for item, wanted in zip(found, expected, strict=True):
        assert item.keys() == wanted.keys()
        for name, array in wanted.items():
            np.testing.assert_array_equal(item[name], array)


def test_a_torch_loader_with_forked_workers_takes_it_as_it_is(ref):
    dataset = SimpleRobotDataset(ref, None, obs_horizon=2, pred_horizon=4)
    expected = [dataset[number] for number in range(len(dataset))]
    loader = DataLoader(dataset, batch_size=4, num_workers=2, multiprocessing_context="fork", timeout=120)
    batches = list(loader)
    for name in expected[0]:
        joined = np.concatenate([batch[name].numpy() for batch in batches])
        np.testing.assert_array_equal(joined, np.stack([item[name] for item in expected]))


def test_few_files_are_open_at_a_time(tiny_dataset_maker):
    ref = tiny_dataset_maker(image_size=(2, 2), frames=1, episodes=MAX_OPEN_FILES + 3, cameras=["top"])
    dataset = SimpleRobotDataset(ref, None, obs_horizon=1, pred_horizon=1)
    first = dataset[0]["images"]
    for number in range(len(dataset)):
        dataset[number]
        assert len(dataset._open) <= MAX_OPEN_FILES
    np.testing.assert_array_equal(dataset[0]["images"], first)
    dataset.close()
    assert not dataset._open


def test_rows_that_contradict_the_manifest_are_refused(ref):
    entry = ref.manifest.entries("train")[0]
    with h5py.File(ref.path(entry), "r+", libver="latest") as file:
        shorter = file["action"][:-1]
        del file["action"]
        file["action"] = shorter
    with pytest.raises(DataError, match="rows of action"):
        SimpleRobotDataset(ref, obs_horizon=2, pred_horizon=4)[0]


@pytest.mark.parametrize(
    "options",
    [
        {"obs_horizon": 0},
        {"pred_horizon": 0},
        {"vision": "video"},
        {"vision": "features"},
        {"vision": "images", "features": object()},
    ],
)
def test_contradicting_options_are_refused(ref, options):
    with pytest.raises(ConfigError):
        SimpleRobotDataset(ref, **{"obs_horizon": 2, "pred_horizon": 4, **options})


def test_an_empty_split_is_refused(tiny_dataset_maker):
    ref = tiny_dataset_maker(image_size=(2, 2), frames=2, episodes=1)
    with pytest.raises(ConfigError, match="no frames"):
        SimpleRobotDataset(ref, "validation", obs_horizon=1, pred_horizon=1)
