"""A dataset of ours becomes a LeRobot dataset (v3) that the lerobot package reads.

States and actions are the same float32 bits; images go through a video encoder and come back close. Episodes are
ordered train first, validation after, and `splits` in `meta/info.json` says where one ends. Rows get the times i / fps
that the format asks for; where the recorded clock differs, it goes along as the feature `observation.timestamp`.
"""

from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from roboimi.errors import ConfigError, DataError
from roboimi.progress import Progress
from roboimi.storage.atomic import json_text, writing
from roboimi.storage.whole_folder import whole_folder
from roboimi.vla.data import lerobot_format as lerobot
from roboimi.vla.data import lerobot_statistics as statistics
from roboimi.vla.data.contract import DatasetContract
from roboimi.vla.data.episode import TIMESTAMP, VELOCITY, EpisodeFile
from roboimi.vla.data.lerobot_import import SIDECAR
from roboimi.vla.data.lerobot_tables import VIDEO_FILE_MB, Tables, place
from roboimi.vla.data.lerobot_video import CODECS, KEYFRAME_EVERY, VideoWriter
from roboimi.vla.data.manifest import SPLITS, DatasetRef

FRAMES_AT_A_TIME = 16
NO_TASK = "unspecified"
LARGEST_CRF = 51
READERS: dict[str, Callable[[EpisodeFile], np.ndarray]] = {
    lerobot.STATE: EpisodeFile.state,
    lerobot.ACTION: EpisodeFile.action,
    lerobot.VELOCITY: EpisodeFile.velocity,
    lerobot.ENVIRONMENT_STATE: EpisodeFile.environment_state,
    lerobot.CLOCK: EpisodeFile.timestamp,
}


def export_lerobot(
    ref: DatasetRef,
    out: str | Path,
    *,
    codec: str = "libx264",
    crf: int | None = None,
    task: str | None = None,
    robot_type: str | None = None,
    video_file_bytes: int = VIDEO_FILE_MB * 2**20,
) -> Path:
    """Write the dataset `ref` as a new folder `out`; nothing is left of a failed export.

    Args:
        ref: the dataset.
        out: a path that is free.
        codec: `libx264` (H.264, crf 18) or `libsvtav1` (AV1, crf 30), both yuv420p with every second frame a keyframe.
        crf: constant rate factor; smaller is closer to the original. None: the codec's default above.
        task: what the robot does, in words; None: the attribute `task` of each episode.
        robot_type: for `meta/info.json`.
        video_file_bytes: a video file that has reached this size takes no further episode.

    Returns:
        The folder.

    Raises:
        DataError: an episode cannot be read, or the images have odd sides, which yuv420p cannot hold.
        ConfigError: `out` is not free, the codec is unknown, or pyarrow or PyAV is not installed.
        DiskFullError, StoreError: the folder cannot be written.
    """
    out = Path(out).expanduser().absolute()
    if codec not in CODECS:
        raise ConfigError(f"The codec {codec!r} is unknown: choose one of {', '.join(CODECS)}.")
    if crf is not None and not 0 <= crf <= LARGEST_CRF:
        raise ConfigError(f"A constant rate factor of {crf} is none: give 0, the best, to {LARGEST_CRF}.")
    if any(side % 2 for side in ref.contract.image_shape[:2]):
        raise DataError(
            f"Dataset {ref.root} has images of {ref.contract.image_height}x{ref.contract.image_width}, and yuv420p "
            "video has even sides only: import it with another --image-size."
        )
    crf = CODECS[codec] if crf is None else crf
    kept = _kept(ref)
    features = _features(ref.contract, kept, codec, crf)
    entries = [entry for split in SPLITS for entry in ref.manifest.entries(split)]
    with whole_folder(out) as folder:
        noted = []
        with (
            Tables(folder, features, ref.contract.fps) as tables,
            _Videos(folder, ref.contract, codec, crf, video_file_bytes) as videos,
            Progress.start("export", total=len(entries)) as progress,
        ):
            for entry in entries:
                with EpisodeFile(ref.path(entry), ref.contract) as episode:
                    attrs = episode.attrs()
                    columns = {key: READERS[key](episode) for key in kept}
                    clips, images = videos.add(episode, entry.frames)
                tables.add(columns, entry.frames, task or str(attrs.get("task") or NO_TASK), clips, images)
                noted.append({"file": entry.file, "attrs": attrs})
                progress.update(len(noted), note=entry.file)
            tables.finish(robot_type, {split: len(ref.manifest.split[split]) for split in SPLITS})
        sidecar = {"schema": "roboimi.lerobot/1", "dataset": ref.digest, "source": ref.manifest.source}
        with writing(folder):
            (folder / SIDECAR).write_text(json_text({**sidecar, "episodes": noted}))
    return out


def _kept(ref: DatasetRef) -> list[str]:
    """The features that the dataset has something for, cameras aside."""
    arrays = set(ref.manifest.layout.get("arrays", ()))
    kept = [lerobot.STATE, lerobot.ACTION]
    if VELOCITY in arrays:
        kept.append(lerobot.VELOCITY)
    if ref.contract.environment_state_dim:
        kept.append(lerobot.ENVIRONMENT_STATE)
    if TIMESTAMP in arrays and any(_own_clock(ref, entry.file) for entry in ref.manifest.episodes):
        kept.append(lerobot.CLOCK)
    return kept


def _own_clock(ref: DatasetRef, file: str) -> bool:
    """Whether the times of an episode are not i / fps."""
    with EpisodeFile(ref.root / file, ref.contract) as episode:
        times = episode.timestamp()
    return not np.allclose(times, np.arange(len(times)) / ref.contract.fps, rtol=0, atol=lerobot.TOLERANCE_S)


def _features(contract: DatasetContract, kept: list[str], codec: str, crf: int) -> dict[str, dict[str, Any]]:
    """The features of `meta/info.json`."""
    names = {
        lerobot.STATE: list(contract.state_names),
        lerobot.ACTION: list(contract.action_names),
        lerobot.VELOCITY: list(contract.state_names),
        lerobot.ENVIRONMENT_STATE: [f"environment_state_{n}" for n in range(contract.environment_state_dim)],
        lerobot.CLOCK: ["seconds"],
    }
    features: dict[str, dict[str, Any]] = {}
    for key in kept:
        dtype = "float64" if key == lerobot.CLOCK else "float32"
        features[key] = {"dtype": dtype, "shape": [len(names[key])], "names": names[key]}
    height, width, channels = contract.image_shape
    info = {
        "video.height": height,
        "video.width": width,
        "video.codec": {"libx264": "h264", "libsvtav1": "av1"}[codec],
        "video.pix_fmt": "yuv420p",
        "video.fps": contract.fps,
        "video.channels": channels,
        "video.g": KEYFRAME_EVERY,
        "video.crf": crf,
        "has_audio": False,
        "is_depth_map": False,
    }
    axes = ["height", "width", "channels"]
    for camera in contract.cameras:
        features[_key(camera)] = {"dtype": "video", "shape": [height, width, channels], "names": axes, "info": info}
    return features


def _key(camera: str) -> str:
    return f"{lerobot.IMAGES_PREFIX}{camera}"


class _Videos:
    """One open video a camera; the next file begins where an episode does."""

    def __init__(self, folder: Path, contract: DatasetContract, codec: str, crf: int, file_bytes: int):
        self.folder, self.contract, self.codec, self.crf, self.file_bytes = folder, contract, codec, crf, file_bytes
        self._writers: dict[str, VideoWriter] = {}
        self._numbers = dict.fromkeys(contract.cameras, -1)

    def add(
        self, episode: EpisodeFile, frames: int
    ) -> tuple[dict[str, lerobot.Clip], dict[str, statistics.Statistics]]:
        """Append one episode; say where its frames lie and what they are like, by feature."""
        fps, cameras = self.contract.fps, self.contract.cameras
        clips = {}
        for camera in cameras:
            start = self._open(camera).frames
            clips[_key(camera)] = lerobot.Clip(*place(self._numbers[camera]), start / fps, (start + frames) / fps)
        samples: dict[str, list[np.ndarray]] = {camera: [] for camera in cameras}
        for first in range(0, frames, FRAMES_AT_A_TIME):
            numbers = range(first, min(first + FRAMES_AT_A_TIME, frames))
            for number, views in zip(numbers, episode.images(numbers), strict=True):
                for camera, image in zip(cameras, views, strict=True):
                    self._writers[camera].write(image)
                    if statistics.sampled(number, frames):
                        samples[camera].append(statistics.reduced(image))
        return clips, {_key(camera): statistics.of_images(sample) for camera, sample in samples.items()}

    def _open(self, camera: str) -> VideoWriter:
        writer = self._writers.get(camera)
        if writer is None or writer.bytes >= self.file_bytes:
            if writer is not None:
                writer.close()
            self._numbers[camera] += 1
            chunk, file = place(self._numbers[camera])
            path = self.folder / lerobot.VIDEO_PATH.format(video_key=_key(camera), chunk_index=chunk, file_index=file)
            size = (self.contract.image_height, self.contract.image_width)
            writer = self._writers[camera] = VideoWriter(path, self.contract.fps, size, self.codec, self.crf)
        writer.start_episode()
        return writer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for writer in self._writers.values():
            if kind is None:
                writer.close()
            else:
                writer.abandon()
