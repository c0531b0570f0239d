"""LeRobotDataset v3 on disk: what `meta/` says of a dataset, read strictly.

    meta/info.json                                     codebase_version "v3.0", fps, features, path templates, splits
    meta/episodes/chunk-000/file-000.parquet           a row per episode: length, tasks, where its rows and frames lie
    meta/tasks.parquet, meta/stats.json                task texts; statistics per feature
    data/chunk-000/file-000.parquet                    a row per frame, several episodes a file
    videos/<feature>/chunk-000/file-000.mp4            the frames of one camera, several episodes a file

An episode's frames begin at `videos/<feature>/from_timestamp` seconds of its video file and follow each other at `fps`;
row i of an episode has `frame_index` i and `timestamp` i / fps. Source: `src/lerobot/datasets` of LeRobot 0.6.1 (its
own reader allows a video frame 1e-4 s away from its row, `tolerance_s`).
"""

import dataclasses
import importlib
import json
import string
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

from roboimi.errors import ConfigError, DataError

CODEBASE_VERSION = "v3.0"
INFO = "meta/info.json"
EPISODES = "meta/episodes"
TASKS = "meta/tasks.parquet"
STATISTICS = "meta/stats.json"
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
TOLERANCE_S = 1e-4
"""How far a timestamp may be from its frame: what LeRobot's own reader allows, and enough for float32."""

STATE, ACTION = "observation.state", "action"
VELOCITY, ENVIRONMENT_STATE = "observation.velocity", "observation.environment_state"
CLOCK = "observation.timestamp"
IMAGES_PREFIX = "observation.images."


@dataclasses.dataclass(frozen=True)
class Feature:
    """One column, or one camera.

    Attributes:
        key: its name in the dataset.
        dtype: `float32`, `int64`, ..., `video` or `image`.
        shape: of one row.
        names: one a dimension, flattened; empty where there are none.
        is_depth: whether the pixels are distances.
    """

    key: str
    dtype: str
    shape: tuple[int, ...]
    names: tuple[str, ...] = ()
    is_depth: bool = False

    @property
    def is_camera(self) -> bool:
        """Whether rows are pictures."""
        return self.dtype in ("video", "image")

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width), whichever way round the shape says it."""
        return self.shape[:2] if self.shape[2] in (1, 3) else self.shape[1:]


@dataclasses.dataclass(frozen=True)
class Clip:
    """Where the frames of one episode and one camera lie: file, and from where to where in it (s)."""

    chunk: int
    file: int
    start_s: float
    end_s: float


@dataclasses.dataclass(frozen=True)
class Episode:
    """One row of `meta/episodes`: number, rows, task texts, data file (chunk, file), first row overall, clips."""

    index: int
    length: int
    tasks: tuple[str, ...]
    data: tuple[int, int]
    first_row: int
    clips: dict[str, Clip]


@dataclasses.dataclass(frozen=True)
class LeRobotDataset:
    """What `meta/` says."""

    root: Path
    fps: int
    features: dict[str, Feature]
    splits: dict[str, range]
    robot_type: str | None
    data_path: str
    video_path: str | None
    episodes: tuple[Episode, ...]

    def data_file(self, place: tuple[int, int]) -> Path:
        """The Parquet file at (chunk, file)."""
        return _inside(self.root, self.data_path, chunk_index=place[0], file_index=place[1])

    def video_file(self, key: str, clip: Clip) -> Path:
        """The MP4 file of a clip."""
        return _inside(
            self.root, self.video_path or VIDEO_PATH, video_key=key, chunk_index=clip.chunk, file_index=clip.file
        )


def optional(name: str) -> ModuleType:
    """Import `pyarrow...` or `av`, which only LeRobot datasets need.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise ConfigError(
            f"LeRobot datasets need the package {package}, which is not installed: pip install 'roboimi[lerobot]'."
        ) from error


def read_meta(root: Path) -> LeRobotDataset:
    """Read and check `meta/` of a dataset in the folder `root`.

    Raises:
        DataError: one sentence on the first thing that is missing, unknown or contradicts itself.
        ConfigError: pyarrow is not installed.
    """
    info = _read_info(root)
    try:
        features = {key: _feature(root, key, value) for key, value in info["features"].items()}
        fps, total_episodes, total_frames = info["fps"], info["total_episodes"], info["total_frames"]
        splits = {name: _split(text) for name, text in (info.get("splits") or {}).items()}
        data_path, video_path = info.get("data_path") or DATA_PATH, info.get("video_path")
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        raise DataError(f"{root / INFO} cannot be understood ({_first_line(error)}): restore it.") from error
    if isinstance(fps, bool) or not isinstance(fps, int | float) or fps != int(fps) or fps < 1:
        raise DataError(
            f"{root / INFO} states {fps!r} frames a second: only a whole number of at least 1 is supported."
        )
    videos = [key for key, feature in features.items() if feature.dtype == "video"]
    episodes = _read_episodes(root, videos)
    if len(episodes) != total_episodes or sum(episode.length for episode in episodes) != total_frames:
        raise DataError(
            f"{root / INFO} states {total_episodes} episodes and {total_frames} frames, but {EPISODES} lists "
            f"{len(episodes)} and {sum(episode.length for episode in episodes)}: download the dataset again."
        )
    return LeRobotDataset(
        root, int(fps), features, splits, info.get("robot_type"), data_path, video_path, tuple(episodes)
    )


def _read_info(root: Path) -> dict[str, Any]:
    if not root.is_dir():
        raise DataError(f"LeRobot dataset folder {root} is not there: correct the path.")
    try:
        info = json.loads((root / INFO).read_text())
    except FileNotFoundError as error:
        raise DataError(
            f"{root} has no {INFO}, so it is no LeRobot dataset: give the folder that holds meta/, data/ and videos/."
        ) from error
    except (OSError, ValueError) as error:
        raise DataError(f"{root / INFO} cannot be read ({_first_line(error)}): restore it.") from error
    version = info.get("codebase_version") if isinstance(info, dict) else None
    if version == "v2.1":
        raise DataError(
            f"{root} has the format v2.1 of LeRobot, not {CODEBASE_VERSION}: convert it with `python -m "
            f"lerobot.scripts.convert_dataset_v21_to_v30 --repo-id={root.name} --root={root} --push-to-hub=false`."
        )
    if version != CODEBASE_VERSION:
        raise DataError(
            f"{root / INFO} states codebase_version {version!r}, and only {CODEBASE_VERSION!r} can be read: convert "
            "the dataset with the lerobot package."
        )
    return info


def _feature(root: Path, key: str, value: dict[str, Any]) -> Feature:
    shape = tuple(int(size) for size in value["shape"])
    details = {**(value.get("video_info") or {}), **(value.get("info") or {})}
    is_depth = bool(details.get("is_depth_map") or details.get("video.is_depth_map"))
    if value["dtype"] in ("video", "image") and len(shape) != 3:
        raise DataError(f"{root / INFO} gives the camera {key!r} the shape {shape}, not (height, width, channels).")
    return Feature(key, str(value["dtype"]), shape, _flat_names(value.get("names")), is_depth)


def _flat_names(names: Any) -> tuple[str, ...]:
    """Names come as a list, or as lists under a heading (`{"motors": [...]}`)."""
    if isinstance(names, dict):
        names = [name for group in names.values() if isinstance(group, list) for name in group]
    return tuple(str(name) for name in names) if isinstance(names, list) else ()


def _split(text: str) -> range:
    first, _, last = text.partition(":")
    return range(int(first), int(last))


def _read_episodes(root: Path, videos: list[str]) -> list[Episode]:
    parquet = optional("pyarrow.parquet")
    files = sorted((root / EPISODES).glob("*/*.parquet"))
    if not files:
        raise DataError(f"{root} has no Parquet file in {EPISODES}: download or finalize the dataset again.")
    columns = ["episode_index", "length", "tasks", "data/chunk_index", "data/file_index", "dataset_from_index"]
    fields = ("chunk_index", "file_index", "from_timestamp", "to_timestamp")
    columns += [f"videos/{key}/{field}" for key in videos for field in fields]
    rows: list[dict[str, Any]] = []
    for file in files:
        try:
            there = set(parquet.read_schema(file).names)
            if missing := [column for column in columns if column not in there]:
                raise DataError(f"{file} has no column {missing[0]!r}: download or finalize the dataset again.")
            rows += parquet.read_table(file, columns=columns).to_pylist()
        except (OSError, ValueError) as error:
            raise DataError(f"{file} cannot be read as Parquet ({_first_line(error)}): restore it.") from error
    rows.sort(key=lambda row: row["episode_index"])
    if [row["episode_index"] for row in rows] != list(range(len(rows))):
        raise DataError(f"{root / EPISODES} does not number its episodes 0 to {len(rows) - 1}, each once: restore it.")
    return [_episode(root, row, videos) for row in rows]


def _episode(root: Path, row: dict[str, Any], videos: list[str]) -> Episode:
    where = f"{root / EPISODES}, episode {row['episode_index']},"
    if empty := [column for column, value in row.items() if value is None]:
        raise DataError(f"{where} says nothing of {empty[0]!r}: finalize or download the dataset again.")
    if row["length"] < 1:
        raise DataError(f"{where} has {row['length']} frames: delete it with the lerobot package.")
    clips = {
        key: Clip(
            row[f"videos/{key}/chunk_index"],
            row[f"videos/{key}/file_index"],
            row[f"videos/{key}/from_timestamp"],
            row[f"videos/{key}/to_timestamp"],
        )
        for key in videos
    }
    place = (row["data/chunk_index"], row["data/file_index"])
    return Episode(row["episode_index"], row["length"], tuple(row["tasks"]), place, row["dataset_from_index"], clips)


def _inside(root: Path, template: str, **values: Any) -> Path:
    """Fill a path template of `info.json`; refuse one that leaves the dataset's folder."""
    try:
        if unknown := {name for _, name, _, _ in string.Formatter().parse(template) if name} - values.keys():
            raise DataError(f"{root / INFO} has the path {template!r} with an unknown part {sorted(unknown)[0]!r}.")
        path = PurePosixPath(template.format(**values))
    except (ValueError, LookupError, AttributeError, TypeError) as error:
        raise DataError(f"{root / INFO} has the path {template!r}, which cannot be filled in: restore it.") from error
    if path.is_absolute() or ".." in path.parts:
        raise DataError(f"{root / INFO} leads to {str(path)!r}, outside of the dataset: refused.")
    return root / path


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
