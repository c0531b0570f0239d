"""The rows of a LeRobot dataset: read episode after episode from its Parquet files, a few at a time."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from roboimi.errors import DataError
from roboimi.vla.data.lerobot_format import TOLERANCE_S, Episode, Feature, LeRobotDataset, optional

ROWS_AT_A_TIME = 64
INDEX_COLUMNS = ("episode_index", "frame_index", "index", "timestamp")


class EpisodeRows:
    """The columns of one episode, checked against `meta/episodes`.

    Attributes:
        columns: (T, n) by feature key; float64 where the dataset has it, float32 otherwise.
        timestamp: (T,) float64, seconds from the episode's start.
        pictures: encoded images by feature key, T each, where cameras are stored in the table.
    """

    def __init__(self, columns: dict[str, np.ndarray], timestamp: np.ndarray, pictures: dict[str, list[bytes]]):
        self.columns, self.timestamp, self.pictures = columns, timestamp, pictures


class DataFiles:
    """Reads episodes in the order of their numbers; one file is open, and `ROWS_AT_A_TIME` rows are read ahead.

    Raises:
        DataError: on reading, when a file is missing, damaged, or has other rows than `meta/episodes` says.
    """

    def __init__(self, dataset: LeRobotDataset, features: list[Feature]):
        self.dataset, self.features = dataset, features
        self._path: Path | None = None
        self._batches: Iterator[Any] | None = None
        self._left: Any = None

    def read(self, episode: Episode) -> EpisodeRows:
        """The rows of the next episode."""
        path = self.dataset.data_file(episode.data)
        if path != self._path:
            self.finish()
            self._path, self._batches = path, self._open(path)
        table = self._take(path, episode)
        where = f"{path}, episode {episode.index},"
        timestamp = self._check_index(where, table, episode)
        columns = {f.key: _values(where, table, f) for f in self.features if not f.is_camera}
        pictures = {f.key: _pictures(where, table, f) for f in self.features if f.is_camera}
        return EpisodeRows(columns, timestamp, pictures)

    def finish(self) -> None:
        """Close the file; there must be no row left in it."""
        left = self._left.num_rows if self._left is not None else 0
        if left or (self._batches is not None and next(self._batches, None) is not None):
            raise DataError(f"{self._path} has rows that no episode of {self.dataset.root / 'meta/episodes'} claims.")
        self._path = self._batches = self._left = None

    def _open(self, path: Path) -> Iterator[Any]:
        parquet = optional("pyarrow.parquet")
        columns = [*INDEX_COLUMNS, *(feature.key for feature in self.features)]
        try:
            with parquet.ParquetFile(path, page_checksum_verification=True) as file:
                if missing := [name for name in columns if name not in file.schema_arrow.names]:
                    raise DataError(f"{path} has no column {missing[0]!r}: download the dataset again.")
                for batch in file.iter_batches(batch_size=ROWS_AT_A_TIME, columns=columns):
                    if batch.num_rows:
                        yield batch
        except FileNotFoundError as error:
            raise DataError(f"{path} is not there: download the dataset again.") from error
        except (OSError, ValueError) as error:
            raise DataError(f"{path} cannot be read as Parquet ({str(error).splitlines()[0]}): restore it.") from error

    def _take(self, path: Path, episode: Episode) -> Any:
        """The next `episode.length` rows as one table."""
        pyarrow = optional("pyarrow")
        parts, missing = [], episode.length
        while missing:
            batch = self._left if self._left is not None else next(self._batches, None)
            if batch is None:
                raise DataError(
                    f"{path} ends {missing} rows short of episode {episode.index}, which has {episode.length}: "
                    "download the dataset again."
                )
            parts.append(batch.slice(0, missing))
            self._left = batch.slice(missing) if batch.num_rows > missing else None
            missing -= parts[-1].num_rows
        return pyarrow.Table.from_batches(parts)

    def _check_index(self, where: str, table: Any, episode: Episode) -> np.ndarray:
        numbers = np.arange(episode.length)
        expected = {
            "frame_index": numbers,  # first, because it shows where a row was lost
            "episode_index": np.full(episode.length, episode.index),
            "index": episode.first_row + numbers,
        }
        for name, values in expected.items():
            if (wrong := np.flatnonzero(_column(table, name).reshape(-1) != values)).size:
                found = _column(table, name).reshape(-1)[wrong[0]]
                raise DataError(
                    f"{where} has {name} {found} in row {wrong[0]}, not {values[wrong[0]]}: rows are missing or in "
                    "another order than the episodes."
                )
        timestamp = _column(table, "timestamp").reshape(-1).astype(np.float64)
        off = np.abs(timestamp - numbers / self.dataset.fps)
        if (wrong := np.flatnonzero(~(off <= TOLERANCE_S))).size:
            raise DataError(
                f"{where} has row {wrong[0]} at {timestamp[wrong[0]]:.4f} s, not at "
                f"{wrong[0] / self.dataset.fps:.4f} s: its timestamps do not fit {self.dataset.fps} frames a second."
            )
        return timestamp


def picture(where: str, encoded: bytes) -> np.ndarray:
    """Decode one image file into (H, W, 3) uint8, RGB.

    Raises:
        DataError: it is damaged.
    """
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            return np.asarray(image.convert("RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{where} cannot be decoded ({str(error).splitlines()[0]}): restore it.") from error


def _column(table: Any, name: str) -> np.ndarray:
    """A column as (T, ...) in its own type; lists become a second axis."""
    column = table.column(name).combine_chunks()
    pyarrow = optional("pyarrow")
    lists = pyarrow.types.is_list(column.type) or pyarrow.types.is_fixed_size_list(column.type)
    values = column.flatten() if lists or pyarrow.types.is_large_list(column.type) else column
    return values.to_numpy(zero_copy_only=False).reshape(len(column), -1) if len(column) else np.empty((0, 0))


def _values(where: str, table: Any, feature: Feature) -> np.ndarray:
    """(T, n) float32 of a numeric feature (float64 where it is that), all finite as float32."""
    try:
        dtype = np.float64 if feature.dtype == "float64" else np.float32
        values = np.ascontiguousarray(_column(table, feature.key), dtype=dtype)
    except (ValueError, TypeError) as error:
        raise DataError(f"{where} has {feature.key} with rows missing or of several widths: restore it.") from error
    if values.shape[1] != int(np.prod(feature.shape)):
        raise DataError(
            f"{where} has {feature.key} {values.shape[1]} wide, not {feature.shape} as meta/info.json says: restore it."
        )
    with np.errstate(over="ignore"):
        finite = np.isfinite(values.astype(np.float32))
    if (wrong := np.argwhere(~finite)).size:
        row, dimension = wrong[0]
        raise DataError(
            f"{where} has {feature.key} {values[row, dimension]} in row {row}, dimension {dimension}: leave the "
            "episode out, no policy learns from it."
        )
    return values


def _pictures(where: str, table: Any, feature: Feature) -> list[bytes]:
    encoded = [row.get("bytes") if isinstance(row, dict) else None for row in table.column(feature.key).to_pylist()]
    if None in encoded:
        raise DataError(
            f"{where} has no picture of {feature.key} in row {encoded.index(None)}: embed the images in the table."
        )
    return encoded
