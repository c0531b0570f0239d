"""Protects the conversion of ALOHA/ACT episodes as others record them: colours, padding, times, and no silent shift."""

import base64
import io

import h5py
import numpy as np
import pytest
from PIL import Image

from roboimi.envs.images import resize_frame
from roboimi.errors import ConfigError, DataError
from roboimi.vla.data.act_images import COLOUR_ORDERS
from roboimi.vla.data.episode import EpisodeFile
from roboimi.vla.data.import_act import import_act
from roboimi.vla.data.import_episodes import ingest

# cv2.imencode(".jpg", rgb, [cv2.IMWRITE_JPEG_QUALITY, 50]) of OpenCV 4.13, as ALOHA's recorders call it, where `rgb` is
# 16 x 16, its left half (230, 30, 10) and its right half (20, 60, 220).
WRITTEN_BY_OPENCV = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDABALDA4MChAODQ4SERATGCgaGBYWGDEjJR0oOjM9PDkzODdASFxOQERXRTc4UG1RV19iZ2hnPk1xeXBk"
    "eFxlZ2P/2wBDARESEhgVGC8aGi9jQjhCY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2P/wAARCAAQABAD"
    "ASIAAhEBAxEB/8QAHwAAAQUBAQEBAQEAAAAAAAAAAAECAwQFBgcICQoL/8QAtRAAAgEDAwIEAwUFBAQAAAF9AQIDAAQRBRIhMUEGE1FhByJxFDKB"
    "kaEII0KxwRVS0fAkM2JyggkKFhcYGRolJicoKSo0NTY3ODk6Q0RFRkdISUpTVFVWV1hZWmNkZWZnaGlqc3R1dnd4eXqDhIWGh4iJipKTlJWWl5iZ"
    "mqKjpKWmp6ipqrKztLW2t7i5usLDxMXGx8jJytLT1NXW19jZ2uHi4+Tl5ufo6erx8vP09fb3+Pn6/8QAHwEAAwEBAQEBAQEBAQAAAAAAAAECAwQF"
    "BgcICQoL/8QAtREAAgECBAQDBAcFBAQAAQJ3AAECAxEEBSExBhJBUQdhcRMiMoEIFEKRobHBCSMzUvAVYnLRChYkNOEl8RcYGRomJygpKjU2Nzg5"
    "OkNERUZHSElKU1RVVldYWVpjZGVmZ2hpanN0dXZ3eHl6goOEhYaHiImKkpOUlZaXmJmaoqOkpaanqKmqsrO0tba3uLm6wsPExcbHyMnK0tPU1dbX"
    "2Nna4uPk5ebn6Onq8vP09fb3+Pn6/9oADAMBAAIRAxEAPwDlq3Kw63K7c+/5d/P9Dtyn7fy/U//Z"
)
FRAMES = 6


def picture(camera, frame):
    """(48, 64, 3) uint8 RGB: red on the left, blue on the right, a bar that moves."""
    image = np.zeros((48, 64, 3), np.uint8)
    image[:, :32, 0] = 200
    image[:, 32:, 2] = 150 if camera == "cam_high" else 220
    image[8 * frame : 8 * frame + 8] = 90
    return image


def jpeg(image, order="bgr"):
    """What OpenCV makes of an RGB array: the standard's JPEG of the array with red and blue exchanged."""
    stream = io.BytesIO()
    Image.fromarray(image[..., ::-1] if order == "bgr" else image).save(stream, "JPEG", quality=95, subsampling=0)
    return stream.getvalue()


def padded(encoded):
    """(T, n) uint8, every row an image file and zeros."""
    rows = np.zeros((len(encoded), max(map(len, encoded)) + 7), np.uint8)
    for row, data in zip(rows, encoded, strict=True):
        row[: len(data)] = np.frombuffer(data, np.uint8)
    return rows


def aloha_episode(path, *, cameras=("cam_high", "cam_low"), order="bgr", lengths=True, seed=0, **attrs):
    """An episode as MarkFzp/mobile-aloha records it."""
    rng = np.random.default_rng(seed)
    with h5py.File(path, "w") as file:
        file.attrs.update({"sim": False, "compress": True} | attrs)
        file["action"] = rng.normal(size=(FRAMES, 14)).astype(np.float32)
        file["base_action"] = rng.normal(size=(FRAMES, 2)).astype(np.float32)
        for name in ("qpos", "qvel", "effort"):
            file[f"observations/{name}"] = rng.normal(size=(FRAMES, 14)).astype(np.float32)
        for camera in cameras:
            images = padded([jpeg(picture(camera, frame), order) for frame in range(FRAMES)])
            file.create_dataset(f"observations/images/{camera}", data=images, chunks=(1, images.shape[1]))
        if lengths:
            file["compress_len"] = np.full((len(cameras), FRAMES), 3, np.float32)  # not what they are: never trusted


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "aloha"
    folder.mkdir()
    for index in range(3):
        aloha_episode(folder / f"episode_{index}.hdf5", seed=index)
    return folder


def first_episode(ref):
    return EpisodeFile(ref.path(ref.manifest.episodes[0]), ref.contract)


def drawn(frame, size=None):
    images = [picture(camera, frame) for camera in ("cam_high", "cam_low")]
    return np.stack([resize_frame(image, size) if size else image for image in images]).astype(float)


def test_compressed_episodes_become_a_dataset_in_the_right_colours(root, tmp_path):
    ref = import_act(root, tmp_path / "out", default_fps=50)
    contract = ref.contract
    assert (contract.state_dim, contract.action_dim, contract.environment_state_dim, contract.fps) == (14, 14, 0, 50)
    assert (contract.cameras, contract.image_shape) == (("cam_high", "cam_low"), (256, 256, 3))
    with first_episode(ref) as episode, h5py.File(root / "episode_0.hdf5") as recorded:
        assert np.array_equal(episode.action(), recorded["action"])
        assert np.array_equal(episode.state(), recorded["observations/qpos"])
        assert np.allclose(episode.timestamp(), np.arange(FRAMES) / 50)
        for frame, views in enumerate(episode.images(range(FRAMES))):
            assert np.abs(views - drawn(frame, (256, 256))).mean() < 3
        assert episode.attrs() == {"sim": False, "fps": 50}
    assert ref.manifest.source == {
        "kind": "import",
        "format": "act-hdf5",
        "fps_from": "default",
        "timestamps": ["from the rate"],
        "compressed": ["cam_high", "cam_low"],
        "colour_order": "bgr",
        "left_out": ["base_action", "observations/effort"],
    }


def test_an_image_that_opencv_wrote_comes_out_red_and_blue(tmp_path):
    (tmp_path / "aloha").mkdir()
    path = tmp_path / "aloha" / "episode_0.hdf5"
    aloha_episode(path)
    with h5py.File(path, "r+") as file:
        for camera in ("cam_high", "cam_low"):
            del file[f"observations/images/{camera}"]
            file[f"observations/images/{camera}"] = padded([WRITTEN_BY_OPENCV] * FRAMES)
    ref = import_act(path.parent, tmp_path / "out", default_fps=50, image_size=None)
    with first_episode(ref) as episode:
        image = episode.images([0])[0, 0].astype(int)
    assert np.abs(image[0, 0] - (230, 30, 10)).max() < 12
    assert np.abs(image[0, 15] - (20, 60, 220)).max() < 12


@pytest.mark.parametrize("order", COLOUR_ORDERS)
@pytest.mark.parametrize("lengths", [True, False])
def test_both_colour_orders_with_and_without_lengths(tmp_path, order, lengths):
    (tmp_path / "aloha").mkdir()
    aloha_episode(tmp_path / "aloha" / "episode_0.hdf5", order=order, lengths=lengths)
    ref = import_act(tmp_path / "aloha", tmp_path / "out", default_fps=50, image_size=None, colour_order=order)
    with first_episode(ref) as episode:
        assert np.abs(episode.images([2])[0] - drawn(2)).mean() < 3


@pytest.mark.parametrize("dtype", [h5py.vlen_dtype(np.uint8), "S4000"])
def test_rows_of_their_own_length_and_no_attribute(tmp_path, dtype):
    (tmp_path / "aloha").mkdir()
    path = tmp_path / "aloha" / "episode_0.hdf5"
    aloha_episode(path)
    with h5py.File(path, "r+") as file:
        del file.attrs["compress"]
        for camera in ("cam_high", "cam_low"):
            encoded = [jpeg(picture(camera, frame)) for frame in range(FRAMES)]
            del file[f"observations/images/{camera}"]
            rows = file.create_dataset(f"observations/images/{camera}", (FRAMES,), dtype)
            for row, data in enumerate(encoded):
                rows[row] = np.bytes_(data) if dtype == "S4000" else np.frombuffer(data, np.uint8)
    ref = import_act(tmp_path / "aloha", tmp_path / "out", default_fps=50, image_size=None)
    with first_episode(ref) as episode:
        assert np.abs(episode.images([2])[0] - drawn(2)).mean() < 3


def test_raw_frames_are_resized_as_in_rollouts_and_clocks_are_kept(tmp_path):
    (tmp_path / "aloha").mkdir()
    path = tmp_path / "aloha" / "episode_0.hdf5"
    aloha_episode(path, compress=False, success=True)
    clock = 1e9 + np.arange(FRAMES) * 0.02 + np.array([0, 0, 0, 2, 0, 0]) * 1e-3
    with h5py.File(path, "r+") as file:
        file["observations/timestamp"] = clock
        for camera in ("cam_high", "cam_low"):
            del file[f"observations/images/{camera}"]
            images = np.stack([picture(camera, frame) for frame in range(FRAMES)])
            file.create_dataset(f"observations/images/{camera}", data=images, chunks=(4, 48, 64, 3))
    ref = import_act(tmp_path / "aloha", tmp_path / "out")
    assert ref.contract.fps == 50
    assert ref.manifest.source["timestamps"] == ["recorded"]
    assert "colour_order" not in ref.manifest.source
    with first_episode(ref) as episode:
        assert np.array_equal(episode.timestamp(), clock)
        for frame, views in enumerate(episode.images(range(FRAMES))):
            assert np.array_equal(views, drawn(frame, (256, 256)))
        assert episode.attrs()["success"] is True


@pytest.mark.parametrize("sim", [True, False])
def test_the_attribute_sim_is_kept_and_shifts_nothing(tmp_path, sim):
    (tmp_path / "aloha").mkdir()
    aloha_episode(tmp_path / "aloha" / "episode_0.hdf5", sim=sim)
    ref = import_act(tmp_path / "aloha", tmp_path / "out", default_fps=50)
    with first_episode(ref) as episode, h5py.File(tmp_path / "aloha" / "episode_0.hdf5") as recorded:
        assert np.array_equal(episode.action(), recorded["action"])
        assert episode.attrs()["sim"] is sim


def rows_of(camera, change):
    def plant(file):
        name = f"observations/images/{camera}"
        rows = [bytes(row).rstrip(b"\0") for row in file[name][()]]
        change(rows)
        del file[name]
        file[name] = padded(rows)

    return plant


def cut(rows):
    rows[4] = rows[4][: len(rows[4]) // 2]


def garbage(rows):
    rows[1] = b"\x01" * 40


def damaged(rows):
    rows[3] = rows[3][:2] + b"\xff\xd9"


def other_size(rows):
    rows[5] = jpeg(np.zeros((40, 64, 3), np.uint8))


def one_fewer(rows):
    rows.pop()


def not_finite(file):
    file["observations/qpos"][2, 3] = np.nan


def narrower(file):
    del file["action"]
    file["action"] = np.zeros((FRAMES, 7), np.float32)


def fewer_states(file):
    del file["observations/qpos"]
    file["observations/qpos"] = np.zeros((FRAMES - 1, 14), np.float32)


@pytest.mark.parametrize(
    ("plant", "word"),
    [
        (rows_of("cam_low", cut), "image 4 of the camera 'cam_low' cut off"),
        (rows_of("cam_low", garbage), "image 1 of the camera 'cam_low' that cannot be decoded"),
        (rows_of("cam_low", damaged), "image 3 of the camera 'cam_low' that cannot be decoded"),
        (rows_of("cam_low", other_size), "image 5 of the camera 'cam_low' as 40x64, the first as 48x64"),
        (rows_of("cam_low", one_fewer), "5 images of the camera 'cam_low' for 6 rows"),
        (not_finite, "/observations/qpos, row 2, that is not finite"),
        (narrower, "the first episode"),
        (fewer_states, "observations/qpos"),
        (lambda file: file.__delitem__("observations/images/cam_low"), "no /observations/images/cam_low"),
        (lambda file: file.attrs.__setitem__("fps", 30), "30 frames a second, the first episode has 50"),
        (lambda file: file.attrs.__setitem__("sim", True), "sim=True and .* has sim=False"),
    ],
)
def test_a_fault_is_one_sentence_and_leaves_nothing_behind(root, tmp_path, plant, word):
    with h5py.File(root / "episode_2.hdf5", "r+") as file:
        plant(file)
    with pytest.raises(DataError, match=word) as caught:
        import_act(root, tmp_path / "out", default_fps=50)
    assert "episode_2.hdf5" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["aloha"]


def test_an_unknown_rate_or_colour_order_is_asked_for(root, tmp_path):
    with pytest.raises(ConfigError, match="--fps HZ"):
        import_act(root, tmp_path / "out")
    with pytest.raises(ConfigError, match="bgr or rgb"):
        import_act(root, tmp_path / "out", default_fps=50, colour_order="grb")


def test_episodes_that_cannot_stay_as_they_are_are_sent_here(root):
    with pytest.raises(DataError, match=r"roboimi import act .* OUT"):
        ingest(root, default_fps=50)
