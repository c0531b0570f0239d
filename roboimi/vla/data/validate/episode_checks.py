"""Checks of one episode: its bytes, its structure, its values."""

from collections.abc import Iterator

import h5py
import numpy as np

from roboimi.errors import DataError
from roboimi.storage.keys import sha256_file
from roboimi.vla.data.episode import (
    ACTION,
    ENVIRONMENT_STATE,
    IMAGES,
    STATE,
    TIMESTAMP,
    VELOCITY,
    expected_shapes,
    image_name,
)
from roboimi.vla.data.hdf5 import Foreign, first_line
from roboimi.vla.data.validate.check import DAMAGE, EpisodeView, Limits, Problem, Stage, check

RECORD_AGAIN = "record the episode again, or drop it"
RESTORE = "restore the file from where it came, or drop it"

_BLOCK = 32
"""Images read at a time: 6 MB at 256x256."""


@check("E02-content-hash", Stage.CONTENT)
def content_hash(episode: EpisodeView, limits: Limits) -> Iterator[Problem]:
    """The file is there, and its bytes are those that were hashed at ingest."""
    if not episode.path.is_file():
        yield Problem("the manifest lists it and it is not there", RESTORE)
        return
    size = episode.path.stat().st_size
    if size != episode.entry.bytes:
        yield Problem(f"it has {size} bytes, not {episode.entry.bytes} as the manifest says", RESTORE)
    elif sha256_file(episode.path) != episode.entry.sha256:
        yield Problem("its bytes are not those that the manifest was made of", RESTORE)


@check("E01-unopenable", Stage.OPEN)
def unopenable(episode: EpisodeView, limits: Limits) -> Iterator[Problem]:
    """HDF5 can open the file and list what is in it."""
    try:
        _ = episode.objects
    except DataError as error:
        yield Problem(f"it cannot be opened ({first_line(error.__cause__ or error)})", RESTORE)
    except DAMAGE as error:
        yield Problem(f"its index is damaged ({first_line(error)})", RESTORE)


@check("E04-links", Stage.OPEN)
def links(episode: EpisodeView, limits: Limits) -> Iterator[Problem]:
    """Nothing in the file leads to another file: such an episode could read any file of the machine."""
    if not _opens(episode):
        return
    for name, item in episode.objects.items():
        if isinstance(item, Foreign):
            what = f"it is a {item.kind} to {item.target[:200]!r}"
            yield Problem(what, "write the data into the file itself", dimension=f"/{name}")


@check("E06-missing-array", Stage.STRUCTURE)
def missing_array(episode: EpisodeView, limits: Limits) -> Iterator[Problem]:
    """Every array of the contract and of the layout is there; cameras have a check of their own."""
    for name in episode.required:
        if name not in episode.datasets and not name.startswith(f"{IMAGES}/"):
            yield Problem("the array is missing", RECORD_AGAIN, dimension=f"/{name}")


@check("E06-camera-set", Stage.STRUCTURE)
def camera_set(episode: EpisodeView, limits: Limits) -> Iterator[Problem]:
    """The cameras are exactly those of the contract, or others that the layout says are there but not used."""
    prefix = f"{IMAGES}/"
    there = {name.removeprefix(prefix) for name in episode.datasets if name.startswith(prefix)}
    expected = set(episode.contract.cameras)
    for camera in sorted(expected - there):
        yield Problem(f"the camera is missing among {sorted(there)}", RECORD_AGAIN, dimension=camera)
    unused = {name.removeprefix(prefix) for name in episode.required if name.startswith(prefix)} - expected
    for camera in sorted(unused - there):
        yield Problem("the layout has this camera and the episode does not", RECORD_AGAIN, dimension=camera)
    for camera in sorted(there - expected - unused):
        yield Problem("the contract does not have this camera", "name it in the contract or drop it", dimension=camera)


@check("E07-shape", Stage.STRUCTURE)
def shape(episode: EpisodeView, limits: Limits) -> Iterator[Problem]:
    """Rows of states, actions and times have the contract's width; images have three channels."""
    for name, row in _known(episode).items():
        found = episode.datasets[name].shape
        fine = found is not None and (
            len(found) == 4 and found[3] == 3 if name.startswith(f"{IMAGES}/") else found[1:] == row and len(found) > 0
        )
        if not fine:
            wanted = ("T", "H", "W", 3) if name.startswith(f"{IMAGES}/") else ("T", *row)
            text = ", ".join(str(size) for size in wanted)
            yield Problem(f"its shape is {found}, not ({text})", RECORD_AGAIN, dimension=f"/{name}")


@check("E07-dtype", Stage.STRUCTURE)
def dtype(episode: EpisodeView, limits: Limits) -> Iterator[Problem]:
    """Images are uint8, everything else is float32 or float64."""
    for name in _known(episode):
        found = episode.datasets[name].dtype
        if name.startswith(f"{IMAGES}/"):
            if found != np.uint8:
                yield Problem(f"its type is {found}, not uint8", RECORD_AGAIN, dimension=f"/{name}")
        elif found.kind != "f" or found.itemsize not in (4, 8):
            yield Problem(f"its type is {found}, not float32 or float64", RECORD_AGAIN, dimension=f"/{name}")


@check("E08-equal-lengths", Stage.STRUCTURE)
def equal_lengths(episode: EpisodeView, limits: Limits) -> Iterator[Problem]:
    """All arrays have as many rows as the manifest says."""
    for name in _known(episode):
        rows = _rows(episode.datasets[name])
        if rows != episode.entry.frames:
            what = f"it has {rows} rows, not {episode.entry.frames} as the manifest says"
            yield Problem(what, RECORD_AGAIN, dimension=f"/{name}")


@check("E10-minimum-length", Stage.STRUCTURE)
def minimum_length(episode: EpisodeView, limits: Limits) -> Iterator[Problem]:
    """The episode is long enough for one chunk of actions."""
    if episode.entry.frames < limits.min_frames:
        what = f"it has {episode.entry.frames} rows, fewer than {limits.min_frames}"
        yield Problem(what, "drop the episode, or lower the minimum")


@check("E19-image-size", Stage.STRUCTURE)
def image_size(episode: EpisodeView, limits: Limits) -> Iterator[Problem]:
    """All images have the contract's size."""
    height, width = episode.contract.image_shape[:2]
    for camera in episode.contract.cameras:
        found = getattr(episode.datasets.get(image_name(camera)), "shape", None)
        if found is not None and len(found) == 4 and found[1:3] != (height, width):
            what = f"its images are {found[1]}x{found[2]}, not {height}x{width}"
            yield Problem(what, "record at the contract's size", dimension=camera)


@check("E13-declared-rate", Stage.STRUCTURE)
def declared_rate(episode: EpisodeView, limits: Limits) -> Iterator[Problem]:
    """The attribute `fps`, where there is one, is the contract's rate."""
    fps = episode.file.attrs.get("fps")
    if fps is not None and not np.array_equal(fps, episode.contract.fps):
        yield Problem(f"it was recorded at {fps} Hz, not {episode.contract.fps} Hz", RECORD_AGAIN, dimension="fps")


@check("E01-damaged-data", Stage.VALUES)
def damaged_data(episode: EpisodeView, limits: Limits) -> Iterator[Problem]:
    """Every row of every array can be read; a checksum in the file finds flipped bits."""
    for name in _known(episode):
        dataset = episode.datasets[name]
        bad = [frame for start in range(0, len(dataset), _BLOCK) for frame in _damaged(dataset, start)]
        if bad:
            what = f"{len(bad)} of {len(dataset)} rows cannot be read"
            yield Problem(what, RESTORE, frames=(bad[0], bad[-1]), dimension=f"/{name}")


@check("E09-finite", Stage.VALUES)
def finite(episode: EpisodeView, limits: Limits) -> Iterator[Problem]:
    """No NaN and no infinity, also not after the conversion to float32 that training uses."""
    for name, values in _low_dim(episode):
        with np.errstate(over="ignore"):
            singles = values if name == TIMESTAMP else values.astype(np.float32)
        for column in range(singles.shape[1]):
            bad = np.flatnonzero(~np.isfinite(singles[:, column]))
            if len(bad):
                what = f"{len(bad)} values are NaN or infinite"
                yield Problem(what, RECORD_AGAIN, _span(bad), _column(episode, name, column))


@check("E11-timestamps", Stage.VALUES)
def timestamps(episode: EpisodeView, limits: Limits) -> Iterator[Problem]:
    """Time goes on from row to row."""
    for name, values in _low_dim(episode):
        if name == TIMESTAMP:
            bad = np.flatnonzero(~(np.diff(values[:, 0]) > 0))
            if len(bad):
                what = f"time stands still or goes back at {len(bad)} places"
                yield Problem(what, RECORD_AGAIN, (int(bad[0]), int(bad[-1]) + 1), f"/{TIMESTAMP}")


@check("E21-action-bounds", Stage.VALUES)
def action_bounds(episode: EpisodeView, limits: Limits) -> Iterator[Problem]:
    """Actions are within the limits that were given, and nowhere near what only a fault produces."""
    for name, values in _low_dim(episode):
        if name != ACTION:
            continue
        most = np.full(values.shape[1], limits.max_abs_action)
        low = -most if limits.action_low is None else np.maximum(-most, limits.action_low)
        high = most if limits.action_high is None else np.minimum(most, limits.action_high)
        for column in range(values.shape[1]):
            bad = np.flatnonzero((values[:, column] < low[column]) | (values[:, column] > high[column]))
            if len(bad):
                worst = values[bad[np.argmax(np.abs(values[bad, column]))], column]
                what = f"{len(bad)} actions are outside [{low[column]:g}, {high[column]:g}], such as {worst:g}"
                yield Problem(what, RECORD_AGAIN, _span(bad), _column(episode, name, column))


def _opens(episode: EpisodeView) -> bool:
    try:
        _ = episode.objects
    except DAMAGE:
        return False
    return True


def _known(episode: EpisodeView) -> dict[str, tuple[int, ...]]:
    """The arrays of the contract that the episode has, with the shape of one row."""
    return {name: row for name, row in expected_shapes(episode.contract).items() if name in episode.datasets}


def _rows(dataset: h5py.Dataset) -> int:
    return dataset.shape[0] if dataset.shape else 0


def _low_dim(episode: EpisodeView) -> Iterator[tuple[str, np.ndarray]]:
    """The readable small arrays by name, as (T, n); a damaged one is the business of E01-damaged-data."""
    for name in (ACTION, STATE, VELOCITY, TIMESTAMP, ENVIRONMENT_STATE):
        if name in _known(episode):
            try:
                values = episode.array(name)
            except (OSError, RuntimeError):
                continue
            yield name, values[:, None] if values.ndim == 1 else values


def _damaged(dataset: h5py.Dataset, start: int) -> Iterator[int]:
    """The rows of a block that cannot be read: none as a rule, found by one read of the block."""
    stop = min(start + _BLOCK, len(dataset))
    if not _readable(dataset, start, stop):
        yield from (frame for frame in range(start, stop) if not _readable(dataset, frame, frame + 1))


def _readable(dataset: h5py.Dataset, start: int, stop: int) -> bool:
    try:
        dataset[start:stop]
    except (OSError, RuntimeError):
        return False
    return True


def _span(rows: np.ndarray) -> tuple[int, int]:
    return (int(rows[0]), int(rows[-1]))


def _column(episode: EpisodeView, name: str, column: int) -> str:
    names = {ACTION: episode.contract.action_names, STATE: episode.contract.state_names}.get(name)
    return f"/{name} [{column}] {names[column]}" if names else f"/{name} [{column}]"
