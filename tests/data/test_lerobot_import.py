"""Protects the import of LeRobot datasets (v3): every row and frame where it belongs, and nothing at all otherwise."""

import json
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest

from roboimi.envs.images import resize_frame
from roboimi.errors import ConfigError, DataError
from roboimi.vla.data.episode import EpisodeFile
from roboimi.vla.data.lerobot_import import import_lerobot
from roboimi.vla.data.lerobot_video import decode
from tests.data import lerobot_source as source
from tests.data.lerobot_source import CAMERAS, FPS, LENGTHS, edit_info, edit_table, write_lerobot

DATA = "data/chunk-000/file-000.parquet"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"


@pytest.fixture
def root(tmp_path):
    return write_lerobot(tmp_path / "lerobot")


def episodes(ref):
    for entry in ref.manifest.episodes:
        with EpisodeFile(ref.path(entry), ref.contract) as episode:
            yield episode


def assert_right(ref, lengths=LENGTHS, tolerance=6.0):
    """Every row bit-equal, every frame the picture that was drawn for it."""
    assert [entry.frames for entry in ref.manifest.episodes] == list(lengths)
    for number, episode in enumerate(episodes(ref)):
        state, action = source.rows(number, lengths[number])
        assert np.array_equal(episode.state(), state)
        assert np.array_equal(episode.action(), action)
        assert np.allclose(episode.timestamp(), np.arange(lengths[number]) / FPS, rtol=0, atol=1e-6)
        images = episode.images(range(lengths[number]))
        for frame, views in enumerate(images):
            for camera, image in zip(CAMERAS, views, strict=True):
                drawn = source.picture(camera, number, frame).astype(float)
                assert np.abs(image - drawn).mean() < tolerance, (number, frame, camera)


def test_rows_are_bit_equal_and_frames_are_their_own(root, tmp_path):
    ref = import_lerobot(root, tmp_path / "out", image_size=None)
    assert_right(ref)
    contract = ref.contract
    assert (contract.state_names, contract.action_names) == (("a", "b", "c"), ("x", "y"))
    assert (contract.cameras, contract.fps, contract.image_shape) == (CAMERAS, FPS, (32, 48, 3))
    assert ref.manifest.source["left_out"] == ["next.reward"]
    assert {episode.attrs()["task"] for episode in episodes(ref)} == {"move"}


@pytest.mark.parametrize("episodes_a_file", [1, 2])
def test_several_files_of_several_episodes(tmp_path, episodes_a_file):
    root = write_lerobot(tmp_path / "lerobot", episodes_a_file=episodes_a_file)
    assert_right(import_lerobot(root, tmp_path / "out", image_size=None))


def test_cameras_that_are_stored_as_images(tmp_path):
    root = write_lerobot(tmp_path / "lerobot", as_images=True)
    assert_right(import_lerobot(root, tmp_path / "out", image_size=None), tolerance=0.1)


def test_frames_are_resized_as_in_rollouts(tmp_path):
    root = write_lerobot(tmp_path / "lerobot", as_images=True, lengths=(2,))
    ref = import_lerobot(root, tmp_path / "out")
    assert ref.contract.image_shape == (256, 256, 3)
    (episode,) = episodes(ref)
    assert np.array_equal(episode.images([1])[0, 0], resize_frame(source.picture("top", 0, 1), (256, 256)))


def test_cameras_and_features_can_be_chosen(root, tmp_path):
    ref = import_lerobot(root, tmp_path / "out", cameras=["wrist"], state="action", action="observation.state")
    assert ref.contract.cameras == ("wrist",)
    assert (ref.contract.state_dim, ref.contract.action_dim) == (2, 3)
    assert ref.manifest.source["left_out"] == ["next.reward", "observation.images.top"]


def test_a_split_of_its_own_is_kept(tmp_path):
    root = write_lerobot(tmp_path / "lerobot", splits={"train": "0:1", "validation": "1:3"})
    split = import_lerobot(root, tmp_path / "out", image_size=None).manifest.split
    assert split == {"train": ("episode_000000.hdf5",), "validation": ("episode_000001.hdf5", "episode_000002.hdf5")}


def shorter_video(root):
    source.write_video(source.video_path(root, "wrist"), source.all_pictures("wrist")[:-1])


def longer_video(root):
    pictures = source.all_pictures("top")
    source.write_video(source.video_path(root, "top"), [*pictures, pictures[-1]])


def video_with_a_hole(root):
    numbers = [n for n in range(sum(LENGTHS) + 1) if n != 3]
    source.write_video(source.video_path(root, "top"), source.all_pictures("top"), numbers=numbers)


def slower_video(root):
    source.write_video(source.video_path(root, "top"), source.all_pictures("top"), fps=9)


def smaller_frames(root):
    pictures = [image[:16, :32] for image in source.all_pictures("top")]
    source.write_video(source.video_path(root, "top"), pictures)


def damaged_video(root):
    path = source.video_path(root, "top")
    path.write_bytes(path.read_bytes()[:200])


def shifted_clip(root):
    edit_table(root / EPISODES, "videos/observation.images.top/from_timestamp", lambda v: [x + 0.03 for x in v])


def clip_of_another_length(root):
    edit_table(root / EPISODES, "videos/observation.images.top/to_timestamp", lambda v: [x + 0.1 for x in v])


def overlapping_clips(root):
    for field in ("from_timestamp", "to_timestamp"):
        edit_table(root / EPISODES, f"videos/observation.images.top/{field}", lambda v: [v[0], v[1] - 0.1, v[2]])


def exchanged_clips(root):
    for field in ("from_timestamp", "to_timestamp"):
        edit_table(root / EPISODES, f"videos/observation.images.top/{field}", lambda v: [v[1], v[0], v[2]])


def without_a_column(root, path, name):
    table = pq.read_table(root / path)
    pq.write_table(table.drop_columns([name]), root / path)


def short_table(root):
    table = pq.read_table(root / DATA)
    pq.write_table(table.slice(0, table.num_rows - 1), root / DATA)


def long_table(root):
    table = pq.read_table(root / DATA)
    pq.write_table(table.take([*range(table.num_rows), 0]), root / DATA)


def lost_row(root):
    table = pq.read_table(root / DATA)
    pq.write_table(table.take([n for n in range(table.num_rows) if n != 2]), root / DATA)


def set_row(value):
    return lambda values: [value if n == 8 else v for n, v in enumerate(values)]


FAULTS = {
    "no info.json": (lambda r: (r / "meta/info.json").unlink(), "no meta/info.json"),
    "info.json damaged": (lambda r: (r / "meta/info.json").write_text("{"), "cannot be read"),
    "v2.1": (lambda r: edit_info(r, codebase_version="v2.1"), "lerobot.scripts.convert_dataset_v21_to_v30"),
    "v4.0": (lambda r: edit_info(r, codebase_version="v4.0"), "'v4.0'"),
    "rate of halves": (lambda r: edit_info(r, fps=12.5), "12.5 frames a second"),
    "other totals": (lambda r: edit_info(r, total_frames=99), "99 frames"),
    "path leaves the folder": (lambda r: edit_info(r, data_path="../{chunk_index}/{file_index}"), "outside"),
    "path with a field": (lambda r: edit_info(r, video_path="{video_key.__class__}"), "unknown part"),
    "no episodes table": (lambda r: (r / EPISODES).unlink(), "no Parquet file"),
    "episodes table damaged": (lambda r: (r / EPISODES).write_bytes(b"PAR1"), "cannot be read as Parquet"),
    "camera not in the table": (
        lambda r: without_a_column(r, EPISODES, "videos/observation.images.wrist/file_index"),
        "no column 'videos/observation.images.wrist/file_index'",
    ),
    "no data file": (lambda r: (r / DATA).unlink(), "is not there"),
    "data file damaged": (lambda r: (r / DATA).write_bytes(b"PAR1"), "cannot be read as Parquet"),
    "no action column": (lambda r: without_a_column(r, DATA, "action"), "no column 'action'"),
    "rows missing at the end": (short_table, "1 rows short of episode 2"),
    "rows too many": (long_table, "no episode"),
    "row lost": (lost_row, "frame_index 3 in row 2"),
    "NaN state": (
        lambda r: edit_table(r / DATA, "observation.state", set_row([0.0, float("nan"), 0.0])),
        "observation.state nan in row 2, dimension 1",
    ),
    "null action": (lambda r: edit_table(r / DATA, "action", set_row([None, 0.0])), "action nan in row 2"),
    "timestamp shifted": (lambda r: edit_table(r / DATA, "timestamp", lambda v: [x + 0.01 for x in v]), "0.0100 s"),
    "timestamp NaN": (lambda r: edit_table(r / DATA, "timestamp", set_row(float("nan"))), "nan s"),
    "no video": (lambda r: source.video_path(r, "top").unlink(), "is not there"),
    "video damaged": (damaged_video, "cannot be decoded"),
    "video shorter than the table": (shorter_video, "1 short of episode 2"),
    "video longer than the table": (longer_video, "goes on after frame 15"),
    "frame missing in the video": (video_with_a_hole, "frame 3 at 0.4000 s"),
    "video of another rate": (slower_video, "not at 0.1000 s"),
    "frames of another size": (smaller_frames, r"\(16, 32\)"),
    "clip between two frames": (shifted_clip, "between two frames"),
    "clip of another length": (clip_of_another_length, "6 rows but 7 frames"),
    "clips overlap": (overlapping_clips, "begins at frame 5 .* end at frame 6"),
    "clips exchanged": (exchanged_clips, "episode|Episode 0"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_one_sentence_and_leaves_nothing_behind(root, tmp_path, fault):
    plant, word = FAULTS[fault]
    plant(root)
    with pytest.raises(DataError, match=word) as caught:
        import_lerobot(root, tmp_path / "out", image_size=None)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["lerobot"]


def test_a_frame_that_the_decoder_painted_over_is_refused(root):
    """H.264 has no checksums, and its decoder hides damage; most of it can be told all the same."""
    path = source.video_path(root, "top")
    whole, outcomes = path.read_bytes(), []
    for offset in range(700, len(whole), len(whole) // 60):
        path.write_bytes(whole[:offset] + bytes([whole[offset] ^ 16]) + whole[offset + 1 :])
        try:
            outcomes.append(len(list(decode(path, FPS))))
        except DataError as error:
            outcomes.append(str(error))
    assert sum("is damaged at frame" in str(outcome) for outcome in outcomes) >= 5


def test_a_camera_or_vector_that_is_not_there_is_named(root, tmp_path):
    with pytest.raises(DataError, match=r"'side'.*top, wrist"):
        import_lerobot(root, tmp_path / "out", cameras=["side"])
    with pytest.raises(DataError, match=r"'effort'.*observation.state, action"):
        import_lerobot(root, tmp_path / "out", state="effort")


def test_depth_is_not_taken_for_colour(root, tmp_path):
    info = json.loads((root / "meta/info.json").read_text())
    info["features"]["observation.images.wrist"]["info"] = {"is_depth_map": True}
    edit_info(root, features=info["features"])
    assert import_lerobot(root, tmp_path / "out", image_size=None).contract.cameras == ("top",)
    with pytest.raises(DataError, match="'wrist'"):
        import_lerobot(root, tmp_path / "again", cameras=["wrist"])


def test_two_cameras_of_one_name_are_refused(root, tmp_path):
    info = json.loads((root / "meta/info.json").read_text())
    info["features"]["top"] = {"dtype": "image", "shape": [32, 48, 3]}
    edit_info(root, features=info["features"])
    with pytest.raises(DataError, match="two cameras of one name"):
        import_lerobot(root, tmp_path / "out")


def test_nothing_is_written_over(root, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is there already"):
        import_lerobot(root, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("package", ["av", "pyarrow"])
def test_a_missing_package_is_named_with_the_extra(root, tmp_path, package, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf"{package}, which is not installed.*roboimi\[lerobot\]"):
        import_lerobot(root, tmp_path / "out")
    assert not (tmp_path / "out").exists()
