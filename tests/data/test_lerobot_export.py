"""Protects the export to LeRobot (v3): the format's own rules, and a way back that loses no bit of the vectors."""

import json
import shutil

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest

from roboimi.errors import ConfigError, DataError
from roboimi.vla.data.episode import EpisodeFile, write_episode
from roboimi.vla.data.lerobot_export import export_lerobot
from roboimi.vla.data.lerobot_import import import_lerobot
from roboimi.vla.data.lerobot_video import decode
from roboimi.vla.data.manifest import describe_episode, resolve_dataset, write_manifest
from tests.conftest import make_tiny_dataset

SIZE = (64, 96)
LENGTHS = (9, 20, 5)


def smooth_images(ref):
    """Replace the pictures of pure noise, which no video codec keeps, by ramps that move."""
    y, x = np.mgrid[0 : SIZE[0], 0 : SIZE[1]]
    entries = []
    for number, entry in enumerate(ref.manifest.episodes):
        path = ref.path(entry)
        with h5py.File(path) as file:
            arrays = {name: file[name][()] for name in ("action", "observations/qpos", "observations/qvel")}
            arrays |= {
                f"observations/{name}": file[f"observations/{name}"][()] for name in ("timestamp", "environment_state")
            }
            attrs = dict(file.attrs)
        for view, camera in enumerate(ref.contract.cameras):
            ramps = [
                np.stack([x * 2, (y + 3 * t) % 256, np.full_like(x, 60 * view + 20 * number)], -1)
                for t in range(entry.frames)
            ]
            arrays[f"observations/images/{camera}"] = np.stack(ramps).astype(np.uint8)
        write_episode(path, arrays, ref.contract, attrs)
        entries.append(describe_episode(path))
    write_manifest(
        ref.root, contract=ref.contract, source=ref.manifest.source, split=ref.manifest.split, episodes=entries
    )
    return resolve_dataset(ref.root)


@pytest.fixture(scope="module")
def ref(tmp_path_factory):
    root = tmp_path_factory.mktemp("export") / "ours"
    return smooth_images(make_tiny_dataset(root, frames=LENGTHS, image_size=SIZE))


@pytest.fixture(scope="module")
def exported(ref):
    return export_lerobot(ref, ref.root.parent / "lerobot", robot_type="vx300s")


def test_the_way_back_keeps_every_bit_but_those_of_the_images(ref, exported, tmp_path):
    back = import_lerobot(exported, tmp_path / "back", image_size=None)
    assert back.contract == ref.contract
    order = [entry for split in ("train", "validation") for entry in ref.manifest.entries(split)]
    assert {name: len(files) for name, files in back.manifest.split.items()} == {"train": 2, "validation": 1}
    for mine, yours in zip(order, back.manifest.episodes, strict=True):
        with EpisodeFile(ref.path(mine), ref.contract) as a, EpisodeFile(back.path(yours), back.contract) as b:
            for read in (EpisodeFile.state, EpisodeFile.action, EpisodeFile.velocity, EpisodeFile.environment_state):
                assert read(a).tobytes() == read(b).tobytes()
            assert np.allclose(a.timestamp(), b.timestamp(), rtol=0, atol=1e-6)
            assert a.attrs() == b.attrs()
            images = [episode.images(range(mine.frames)).astype(float) for episode in (a, b)]
            error = ((images[0] - images[1]) ** 2).mean(axis=(2, 3, 4))
            assert (10 * np.log10(255**2 / error)).min() > 35


def test_info_and_tables_follow_the_format(ref, exported):
    info = json.loads((exported / "meta/info.json").read_text())
    assert (info["codebase_version"], info["fps"], info["robot_type"]) == ("v3.0", 25, "vx300s")
    assert (info["total_episodes"], info["total_frames"], info["total_tasks"]) == (3, sum(LENGTHS), 1)
    assert info["splits"] == {"train": "0:2", "validation": "2:3"}
    data = pq.ParquetFile(exported / "data/chunk-000/file-000.parquet")
    assert data.num_row_groups == 3
    table = data.read()
    assert str(table.schema.field("observation.state").type) == "fixed_size_list<element: float>[14]"
    assert str(table.schema.field("timestamp").type) == "float"
    assert table.column("index").to_pylist() == list(range(sum(LENGTHS)))
    episodes = pq.read_table(exported / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    assert [episode["dataset_to_index"] for episode in episodes] == np.cumsum([e["length"] for e in episodes]).tolist()
    key = "videos/observation.images.top"
    starts, ends = ([episode[f"{key}/{name}_timestamp"] for episode in episodes] for name in ("from", "to"))
    assert starts[1:] == ends[:-1]
    tasks = pq.read_table(exported / "meta/tasks.parquet")
    assert json.loads(tasks.schema.metadata[b"pandas"])["index_columns"] == ["task"]
    assert tasks.to_pylist() == [{"task_index": 0, "task": "tiny"}]


def test_statistics_are_those_of_the_data(ref, exported):
    merged = json.loads((exported / "meta/stats.json").read_text())
    rows = []
    for entry in ref.manifest.episodes:
        with EpisodeFile(ref.path(entry), ref.contract) as episode:
            rows.append(episode.action())
    rows = np.concatenate(rows).astype(np.float64)
    for name, value in {"min": rows.min(0), "max": rows.max(0), "mean": rows.mean(0), "std": rows.std(0)}.items():
        assert np.allclose(merged["action"][name], value), name
    assert merged["action"]["count"] == [sum(LENGTHS)]
    image = merged["observation.images.top"]
    assert np.shape(image["mean"]) == (3, 1, 1)
    assert 0 <= np.min(image["min"]) <= np.max(image["max"]) <= 1


def test_a_full_video_file_is_followed_by_another(ref, tmp_path):
    out = export_lerobot(ref, tmp_path / "out", video_file_bytes=1)
    videos = sorted(path.name for path in (out / "videos/observation.images.left/chunk-000").iterdir())
    assert videos == ["file-000.mp4", "file-001.mp4", "file-002.mp4"]
    back = import_lerobot(out, tmp_path / "back", image_size=None)
    assert sorted(entry.frames for entry in back.manifest.episodes) == sorted(LENGTHS)


def test_av1_where_it_is_asked_for(ref, tmp_path):
    out = export_lerobot(ref, tmp_path / "out", codec="libsvtav1", crf=40)
    info = json.loads((out / "meta/info.json").read_text())["features"]["observation.images.top"]["info"]
    assert (info["video.codec"], info["video.crf"]) == ("av1", 40)
    video = out / "videos/observation.images.top/chunk-000/file-000.mp4"
    assert sum(1 for _ in decode(video, 25)) == sum(LENGTHS)


def test_a_clock_of_its_own_goes_along(tmp_path):
    ref = make_tiny_dataset(tmp_path / "ours", episodes=2, frames=6, image_size=(64, 64), cameras=["top"])
    entry = ref.manifest.episodes[0]
    clock = 1000 + np.arange(6) / 25 + np.array([0, 0.002, 0, 0.003, 0, 0])
    with h5py.File(ref.path(entry), "r+") as file:
        file["observations/timestamp"][...] = clock
    back = import_lerobot(export_lerobot(ref, tmp_path / "lerobot"), tmp_path / "back", image_size=None)
    clocks = []
    for other in back.manifest.episodes:
        with EpisodeFile(back.path(other), back.contract) as episode:
            clocks.append(episode.timestamp())
    assert any(np.array_equal(times, clock) for times in clocks)


def test_a_bit_that_changes_in_the_table_is_found(ref, exported, tmp_path):
    copy = tmp_path / "lerobot"
    shutil.copytree(exported, copy)
    path = copy / "data/chunk-000/file-000.parquet"
    with EpisodeFile(ref.path(ref.manifest.entries("train")[0]), ref.contract) as episode:
        value = episode.state()[3, 5].tobytes()
    damaged = bytearray(path.read_bytes())
    damaged[damaged.index(value)] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        import_lerobot(copy, tmp_path / "back", image_size=None)


def test_what_cannot_be_exported_is_one_sentence_and_leaves_nothing(ref, tmp_path):
    odd = make_tiny_dataset(tmp_path / "odd", episodes=1, frames=4, image_size=(31, 64), cameras=["top"])
    with pytest.raises(DataError, match=r"31x64.*even sides"):
        export_lerobot(odd, tmp_path / "out")
    with pytest.raises(ConfigError, match="'mpeg2' is unknown: choose one of libx264, libsvtav1"):
        export_lerobot(ref, tmp_path / "out", codec="mpeg2")
    with pytest.raises(ConfigError, match="rate factor of 99"):
        export_lerobot(ref, tmp_path / "out", crf=99)
    with pytest.raises(ConfigError, match="is there already"):
        export_lerobot(ref, ref.root)
    assert [path.name for path in tmp_path.iterdir()] == ["odd"]


def test_an_episode_that_cannot_be_read_leaves_nothing(tmp_path):
    ref = make_tiny_dataset(tmp_path / "ours", frames=6, image_size=(64, 64), cameras=["top"])
    path = ref.path(ref.manifest.entries("validation")[0])
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(DataError, match=path.name):
        export_lerobot(ref, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]
