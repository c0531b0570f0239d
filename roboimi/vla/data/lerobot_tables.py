"""The Parquet and JSON files of a LeRobot dataset that is being written; see `lerobot_format` for where they lie."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from roboimi.errors import DataError
from roboimi.storage.atomic import writing
from roboimi.vla.data import lerobot_format as lerobot
from roboimi.vla.data import lerobot_statistics as statistics

FILES_A_CHUNK = 1000
DATA_FILE_MB = 100
VIDEO_FILE_MB = 200
INDEX_FEATURES = {
    "timestamp": "float32",
    "frame_index": "int64",
    "episode_index": "int64",
    "index": "int64",
    "task_index": "int64",
}
"""The columns that every LeRobot dataset has, by type."""


def place(number: int) -> tuple[int, int]:
    """(chunk, file) of the `number`-th file of a kind."""
    return divmod(number, FILES_A_CHUNK)


class Tables:
    """Takes episodes one after another; `finish` writes what is said of all of them.

    Raises:
        DataError: an array of an episode has another number of rows than the episode.
        DiskFullError, StoreError: a file cannot be written.
    """

    def __init__(self, folder: Path, features: Mapping[str, dict[str, Any]], fps: int):
        """Prepare the schema.

        Args:
            folder: of the dataset.
            features: as `meta/info.json` has them, without the index columns.
            fps: rows per second.
        """
        self.folder, self.fps = folder, fps
        self.features = dict(features)
        self.features |= {key: {"dtype": kind, "shape": [1], "names": None} for key, kind in INDEX_FEATURES.items()}
        self._arrow, self._parquet = lerobot.optional("pyarrow"), lerobot.optional("pyarrow.parquet")
        fields = [(key, self._type(f)) for key, f in self.features.items() if f["dtype"] != "video"]
        self._schema = self._arrow.schema(fields)
        self._tasks: dict[str, int] = {}
        self._episodes: list[dict[str, Any]] = []
        self._statistics: list[dict[str, statistics.Statistics]] = []
        self._frames = 0
        self._number, self._writer, self._file = -1, None, None

    def add(
        self,
        columns: Mapping[str, np.ndarray],
        frames: int,
        task: str,
        clips: Mapping[str, lerobot.Clip],
        images: Mapping[str, statistics.Statistics],
    ) -> None:
        """Append one episode: its (T, n) columns, its task, where its frames lie and what they are like."""
        number = np.arange(frames)
        values = dict(columns) | {
            "timestamp": number / self.fps,
            "frame_index": number,
            "episode_index": np.full(frames, len(self._episodes)),
            "index": self._frames + number,
            "task_index": np.full(frames, self._tasks.setdefault(task, len(self._tasks))),
        }
        values = {key: rows.reshape(len(rows), -1) for key, rows in values.items()}
        if wrong := [key for key, rows in values.items() if len(rows) != frames]:
            raise DataError(f"An episode has {len(values[wrong[0]])} rows of {wrong[0]}, not {frames}: validate it.")
        with writing(self.folder):
            self._open_file()
            arrays = [self._array(field.type, values[field.name]) for field in self._schema]
            # A row group an episode, so that a reader gets one without reading the others.
            self._writer.write_table(self._arrow.table(arrays, schema=self._schema))
        parts = {key: statistics.of_rows(rows) for key, rows in values.items()} | dict(images)
        self._statistics.append(parts)
        self._episodes.append(self._described(frames, task, clips, parts))
        self._frames += frames

    def finish(self, robot_type: str | None, splits: Mapping[str, int]) -> None:
        """Write `meta/`.

        Args:
            robot_type: of `meta/info.json`.
            splits: how many episodes each split has, in the order in which they were added.
        """
        with writing(self.folder):
            self._writer.close()
            episodes = self.folder / lerobot.EPISODES_PATH.format(chunk_index=0, file_index=0)
            episodes.parent.mkdir(parents=True, exist_ok=True)
            self._parquet.write_table(self._arrow.Table.from_pylist(self._episodes), episodes)
            self._write_tasks()
            merged = {key: statistics.merge([part[key] for part in self._statistics]) for key in self._statistics[0]}
            (self.folder / lerobot.STATISTICS).write_text(json.dumps(statistics.plain(merged), indent=4))
            info = {
                "codebase_version": lerobot.CODEBASE_VERSION,
                "fps": self.fps,
                "features": self.features,
                "total_episodes": len(self._episodes),
                "total_frames": self._frames,
                "total_tasks": len(self._tasks),
                "chunks_size": FILES_A_CHUNK,
                "data_files_size_in_mb": DATA_FILE_MB,
                "video_files_size_in_mb": VIDEO_FILE_MB,
                "data_path": lerobot.DATA_PATH,
                "video_path": lerobot.VIDEO_PATH,
                "robot_type": robot_type,
                "splits": _ranges(splits),
            }
            (self.folder / lerobot.INFO).write_text(json.dumps(info, indent=4))

    def _open_file(self) -> None:
        if self._writer is not None and self._file.stat().st_size >= DATA_FILE_MB * 2**20:
            self._writer.close()
            self._writer = None
        if self._writer is None:
            self._number += 1
            chunk, file = place(self._number)
            self._file = self.folder / lerobot.DATA_PATH.format(chunk_index=chunk, file_index=file)
            self._file.parent.mkdir(parents=True, exist_ok=True)
            # Checksums, which LeRobot's own writer leaves out, make damage an error instead of other values.
            self._writer = self._parquet.ParquetWriter(
                self._file, self._schema, compression="snappy", write_page_checksum=True
            )

    def _described(
        self,
        frames: int,
        task: str,
        clips: Mapping[str, lerobot.Clip],
        parts: Mapping[str, statistics.Statistics],
    ) -> dict[str, Any]:
        """A row of `meta/episodes`."""
        chunk, file = place(self._number)
        row = {"episode_index": len(self._episodes), "tasks": [task], "length": frames}
        row |= {"data/chunk_index": chunk, "data/file_index": file}
        row |= {"dataset_from_index": self._frames, "dataset_to_index": self._frames + frames}
        for key, clip in clips.items():
            row |= {f"videos/{key}/chunk_index": clip.chunk, f"videos/{key}/file_index": clip.file}
            row |= {f"videos/{key}/from_timestamp": clip.start_s, f"videos/{key}/to_timestamp": clip.end_s}
        for key, values in parts.items():
            row |= {f"stats/{key}/{name}": value.tolist() for name, value in values.items()}
        return row | {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0}

    def _write_tasks(self) -> None:
        """Task texts are the index of a data frame, so the file says so in the words of pandas."""
        texts = self._arrow.array(list(self._tasks), self._arrow.string())
        table = self._arrow.table({"task_index": list(self._tasks.values()), "task": texts})
        column = {"field_name": "task", "name": "task", "metadata": None}
        number = {"field_name": "task_index", "name": "task_index", "metadata": None}
        pandas = {
            "index_columns": ["task"],
            "column_indexes": [],
            "columns": [
                {**number, "pandas_type": "int64", "numpy_type": "int64"},
                {**column, "pandas_type": "unicode", "numpy_type": "object"},
            ],
        }
        self._parquet.write_table(
            table.replace_schema_metadata({"pandas": json.dumps(pandas)}), self.folder / lerobot.TASKS
        )

    def _type(self, feature: Mapping[str, Any]) -> Any:
        scalar = getattr(self._arrow, feature["dtype"])()
        width = feature["shape"][0]
        return scalar if width == 1 else self._arrow.list_(scalar, width)

    def _array(self, kind: Any, rows: np.ndarray) -> Any:
        if not self._arrow.types.is_fixed_size_list(kind):
            return self._arrow.array(rows[:, 0]).cast(kind)
        flat = self._arrow.array(np.ascontiguousarray(rows).reshape(-1)).cast(kind.value_type)
        return self._arrow.FixedSizeListArray.from_arrays(flat, kind.list_size)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._writer is not None and self._writer.is_open:
            self._writer.close()


def _ranges(splits: Mapping[str, int]) -> dict[str, str]:
    """`{"train": "0:9", "validation": "9:10"}` of how many episodes each has."""
    ranges, first = {}, 0
    for name, count in splits.items():
        if count:
            ranges[name] = f"{first}:{first + count}"
        first += count
    return ranges
