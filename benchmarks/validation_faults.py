"""Faults of robot data, one class for each number of the checks, planted into sound episodes with known place.

A class says which codes may find it, how bad it is at each step of its ladder, and plants itself into the arrays of one
episode (`Sample`), into the bytes of its file, or into the dataset around it. Used by the tests and by
`validation_detection.py`.
"""

import dataclasses
import io
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from PIL import Image

from roboimi.vla.data.episode import ACTION, IMAGES, STATE, TIMESTAMP, image_name
from roboimi.vla.data.manifest import DatasetRef, EpisodeEntry
from roboimi.vla.data.validate.pictures import CameraFacts, watch
from roboimi.vla.data.validate.view import EpisodeView

Frames = tuple[int, int] | None


@dataclasses.dataclass
class Sample:
    """One episode in memory: arrays by name in the file, attributes, and which cameras were touched."""

    file: str
    arrays: dict[str, np.ndarray]
    attrs: dict[str, Any]
    touched: set[str] = dataclasses.field(default_factory=set)

    def copy(self) -> "Sample":
        """A copy whose arrays may be replaced, not written into."""
        return Sample(self.file, dict(self.arrays), dict(self.attrs))

    @property
    def frames(self) -> int:
        """T."""
        return len(self.arrays[ACTION])

    def edit(self, name: str) -> np.ndarray:
        """An array of its own to write into."""
        self.arrays[name] = self.arrays[name].copy()
        if name.startswith(f"{IMAGES}/"):
            self.touched.add(name.removeprefix(f"{IMAGES}/"))
        return self.arrays[name]

    def put(self, name: str, values: np.ndarray) -> None:
        """Another array in an array's place."""
        self.arrays[name] = values
        if name.startswith(f"{IMAGES}/"):
            self.touched.add(name.removeprefix(f"{IMAGES}/"))


def read_sample(path: Path) -> Sample:
    """A sound episode, whole."""
    arrays: dict[str, np.ndarray] = {}
    with h5py.File(path) as file:
        file.visititems(lambda name, item: arrays.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
        return Sample(path.name, arrays, dict(file.attrs))


class MemoryView(EpisodeView):
    """An `EpisodeView` of a `Sample`: a real HDF5 file, in memory.

    `facts` holds what is known of untouched cameras, so that they are not looked at again.
    """

    def __init__(self, ref: DatasetRef, sample: Sample, facts: dict[str, Any] | None = None, frames: int | None = None):
        entry = EpisodeEntry(sample.file, "0" * 64, 0, sample.frames if frames is None else frames)
        super().__init__(ref, entry)
        file = h5py.File(f"{id(self)}.hdf5", "w", driver="core", backing_store=False, libver="latest")
        for name, values in sample.arrays.items():
            if isinstance(values, np.ndarray):
                file.create_dataset(name, data=values)
        file.attrs.update(sample.attrs)
        self.__dict__["file"] = file
        self._facts = facts or {}
        self._touched = sample.touched

    @cached_property
    def cameras(self) -> dict[str, CameraFacts]:
        """As of any episode, touched cameras looked at anew."""
        return {
            camera: watch(self.datasets[image_name(camera)])
            if camera in self._touched or camera not in self._facts
            else self._facts[camera]
            for camera in self.contract.cameras
        }


Plant = Callable[[Sample, np.random.Generator, float], Frames]


@dataclasses.dataclass(frozen=True)
class Fault:
    """A class of faults.

    Attributes:
        number: of the checks that look for it.
        name: in a few words.
        codes: checks any of which finds it.
        plant: changes a sample in place, and says which frames are concerned (None: all).
        ladder: severities, mildest first.
        stated: the severity from which on it is promised to be found.
        unit: of the severities.
    """

    number: int
    name: str
    codes: frozenset[str]
    plant: Plant
    ladder: tuple[float, ...] = (1.0,)
    stated: float = 1.0
    unit: str = ""


def _pick(rng: np.random.Generator, sample: Sample, length: int) -> tuple[int, int]:
    """First and last frame of a span of `length` frames, away from the ends, while something moves."""
    speed = np.abs(np.diff(sample.arrays[STATE], axis=0)).sum(axis=1)
    starts = np.arange(2, sample.frames - length - 2)
    moved = np.array([speed[start : start + max(length, 1)].mean() for start in starts])
    start = int(rng.choice(starts[moved >= np.quantile(moved, 0.3)]))
    return start, start + length - 1


def _camera(rng: np.random.Generator, sample: Sample) -> str:
    return str(rng.choice(sorted(name for name in sample.arrays if name.startswith(f"{IMAGES}/"))))


def _moving_joint(rng: np.random.Generator, sample: Sample, least: float = 0.15) -> int:
    spread = np.minimum(sample.arrays[STATE].std(axis=0), sample.arrays[ACTION].std(axis=0))
    joints = [index for index in np.flatnonzero(spread > least) if index not in (6, 13)]
    return int(rng.choice(joints))


def missing(sample: Sample, rng: np.random.Generator, severity: float) -> Frames:
    """One array or camera is not there."""
    name = rng.choice([name for name in sorted(sample.arrays) if name != "observations/qvel"])
    del sample.arrays[name]
    return None


def shape_or_type(sample: Sample, rng: np.random.Generator, severity: float) -> Frames:
    """One array has a dimension too many or too few, or another type."""
    name = str(rng.choice([ACTION, STATE, _camera(rng, sample)]))
    values = sample.arrays[name]
    kind = int(rng.integers(3))
    if kind == 0:
        sample.put(name, values[..., :-1])
    elif kind == 1:
        sample.put(name, np.concatenate([values, values[..., :1]], axis=-1))
    else:
        sample.put(name, values.astype(np.int16 if values.dtype == np.uint8 else np.int32))
    return None


def unequal_lengths(sample: Sample, rng: np.random.Generator, severity: float) -> Frames:
    """One array is shorter than the others."""
    name = str(rng.choice(sorted(set(sample.arrays) - {ACTION})))
    length = sample.frames
    sample.put(name, sample.arrays[name][: length - int(severity)])
    return (length - int(severity), length - 1)


def not_finite(sample: Sample, rng: np.random.Generator, severity: float) -> Frames:
    """Single values are NaN or infinite."""
    name = str(rng.choice([ACTION, STATE, "observations/qvel"]))
    values = sample.edit(name)
    start = int(rng.integers(0, len(values) - int(severity)))
    rows = slice(start, start + int(severity))
    values[rows, rng.integers(values.shape[1])] = rng.choice([np.nan, np.inf, -np.inf])
    return (start, start + int(severity) - 1)


def too_short(sample: Sample, rng: np.random.Generator, severity: float) -> Frames:
    """Only the first rows are there."""
    for name in sample.arrays:
        sample.put(name, sample.arrays[name][: int(severity)])
    return None


def time_goes_back(sample: Sample, rng: np.random.Generator, severity: float) -> Frames:
    """A time is that of an earlier row."""
    values = sample.edit(TIMESTAMP)
    row = int(rng.integers(int(severity) + 1, len(values) - 1))
    values[row] = values[row - int(severity)]
    return (row - 1, row)


def dropped_frames(sample: Sample, rng: np.random.Generator, severity: float) -> Frames:
    """The recorder slept for `severity` frames."""
    values = sample.edit(TIMESTAMP)
    row = int(rng.integers(2, len(values) - 2))
    values[row:] += severity * np.median(np.diff(values))
    return (row - 1, row)


def wrong_rate(sample: Sample, rng: np.random.Generator, severity: float) -> Frames:
    """Rows come slower or faster than declared, by a share."""
    sample.put(TIMESTAMP, sample.arrays[TIMESTAMP] * (1 + severity * rng.choice([-1, 1])))
    return None


def frozen(sample: Sample, rng: np.random.Generator, severity: float) -> Frames:
    """A camera repeats one picture."""
    first, last = _pick(rng, sample, int(severity))
    images = sample.edit(_camera(rng, sample))
    images[first : last + 1] = images[first]
    return (first, last)


def late_camera(sample: Sample, rng: np.random.Generator, severity: float) -> Frames:
    """A camera is frames late."""
    name, late = _camera(rng, sample), int(severity)
    images = sample.arrays[name]
    sample.put(name, np.concatenate([np.repeat(images[:1], late, axis=0), images[:-late]]))
    return None


def blank(sample: Sample, rng: np.random.Generator, severity: float) -> Frames:
    """Pictures are black, white or grey."""
    first = int(rng.integers(1, sample.frames - int(severity)))
    sample.edit(_camera(rng, sample))[first : first + int(severity)] = rng.choice([0, 255, 128])
    return (first, first + int(severity) - 1)


def swapped_cameras(sample: Sample, rng: np.random.Generator, severity: float) -> Frames:
    """Two cameras have each other's name."""
    names = sorted(name for name in sample.arrays if name.startswith(f"{IMAGES}/"))
    first, second = rng.permutation(names)[:2]
    one, two = sample.arrays[first], sample.arrays[second]
    sample.put(str(first), two)
    sample.put(str(second), one)
    return None


def blue_for_red(sample: Sample, rng: np.random.Generator, severity: float) -> Frames:
    """A camera stored BGR."""
    name = _camera(rng, sample)
    sample.put(name, np.ascontiguousarray(sample.arrays[name][..., ::-1]))
    return None


def other_size(sample: Sample, rng: np.random.Generator, severity: float) -> Frames:
    """A camera has images of another size."""
    name = _camera(rng, sample)
    pixels = int(severity)
    sample.put(name, sample.arrays[name][:, :-pixels, pixels:])
    return None


def broken_jpeg(sample: Sample, rng: np.random.Generator, severity: float) -> Frames:
    """Images are JPEGs in padded rows, and some are cut off."""
    name = _camera(rng, sample)
    encoded = [_jpeg(image) for image in sample.arrays[name]]
    first = int(rng.integers(0, len(encoded) - int(severity)))
    for frame in range(first, first + int(severity)):
        encoded[frame] = encoded[frame][: int(rng.uniform(0.05, 0.95) * len(encoded[frame]))]
    rows = np.zeros((len(encoded), max(len(data) for data in encoded)), dtype=np.uint8)
    for frame, data in enumerate(encoded):
        rows[frame, : len(data)] = np.frombuffer(data, dtype=np.uint8)
    sample.put(name, rows)
    return (first, first + int(severity) - 1)


def beyond_limits(sample: Sample, rng: np.random.Generator, severity: float) -> Frames:
    """A joint is beyond its range, by a share of the range."""
    name = str(rng.choice([STATE, ACTION]))
    values = sample.edit(name)
    column = int(rng.choice([index for index in range(values.shape[1]) if index not in (6, 13)]))
    low, high = LIMITS["low"][column], LIMITS["high"][column]
    start = int(rng.integers(0, len(values) - 5))
    values[start : start + 5, column] = high + severity * (high - low)
    return (start, start + 4)


LIMITS: dict[str, Any] = {}
"""The robot's ranges `low` and `high`, for `beyond_limits`; filled by who plants."""


def in_degrees(sample: Sample, rng: np.random.Generator, severity: float) -> Frames:
    """All joint angles are degrees, in state, action or both."""
    which = rng.choice(3)
    for name in [(STATE,), (ACTION,), (STATE, ACTION)][which]:
        values = sample.edit(name)
        joints = [index for index in range(values.shape[1]) if index not in (6, 13)]
        values[:, joints] = np.degrees(values[:, joints])
    return None


def gripper_in_other_unit(sample: Sample, rng: np.random.Generator, severity: float) -> Frames:
    """A gripper's opening is in metres, or in percent."""
    column, factor = int(rng.choice([6, 13])), float(rng.choice([0.04, 100.0]))
    for name in (STATE, ACTION):
        sample.edit(name)[:, column] *= factor
    return None


def shifted_actions(sample: Sample, rng: np.random.Generator, severity: float) -> Frames:
    """Actions are frames early or late against the states."""
    shift = int(severity) * int(rng.choice([-1, 1]))
    action = sample.arrays[ACTION]
    rows = np.clip(np.arange(len(action)) + shift, 0, len(action) - 1)
    sample.put(ACTION, action[rows])
    return None


def teleport(sample: Sample, rng: np.random.Generator, severity: float) -> Frames:
    """A joint jumps and stays there."""
    column = int(rng.choice([index for index in range(14) if index not in (6, 13)]))
    row = int(rng.integers(5, sample.frames - 5))
    values = sample.edit(STATE)
    step = values[row, column] - values[row - 1, column]
    values[row:, column] += severity * (1 if step >= 0 else -1)
    return (row - 1, row)


def stuck_joint(sample: Sample, rng: np.random.Generator, severity: float) -> Frames:
    """A joint that moves gives one value."""
    column = _moving_joint(rng, sample)
    values = sample.edit(STATE)
    values[:, column] = values[0, column]
    return None


def clipped(sample: Sample, rng: np.random.Generator, severity: float) -> Frames:
    """A joint is cut off at its end for a share of the rows in which it moves."""
    column = _moving_joint(rng, sample)
    values = sample.edit(str(rng.choice([STATE, ACTION])))
    series = values[:, column].astype(np.float64) + 1e-3 * np.sin(np.arange(len(values)))
    upper = bool(rng.integers(2))
    level = np.quantile(series[1:-1], 1 - severity if upper else severity)
    series[1:-1] = np.minimum(series[1:-1], level) if upper else np.maximum(series[1:-1], level)
    series[0] = series[-1] = level - 0.2 if upper else level + 0.2
    values[:, column] = series
    rows = np.flatnonzero(np.abs(series - level) < 1e-9)
    return (int(rows[0]), int(rows[-1]))


def other_order(sample: Sample, rng: np.random.Generator, severity: float) -> Frames:
    """Left and right arm are exchanged in the actions, or two unlike joints are."""
    action = sample.arrays[ACTION]
    order = np.arange(action.shape[1])
    if rng.integers(2):
        order = np.concatenate([order[7:], order[:7]])
    else:
        distance = np.sqrt(((action[:, :, None] - action[:, None, :]) ** 2).mean(axis=0))
        joints = [index for index in range(14) if index not in (6, 13)]
        unlike = [(i, j) for i in joints for j in joints if i < j and distance[i, j] > severity]
        first, second = unlike[int(rng.integers(len(unlike)))]
        order[[first, second]] = order[[second, first]]
    for name in (ACTION, STATE) if rng.integers(2) else (ACTION,):
        sample.put(name, sample.arrays[name][:, order])
    return None


def idle_end(sample: Sample, rng: np.random.Generator, severity: float) -> Frames:
    """The recording went on for seconds after the end."""
    extra = round(severity * float(sample.attrs["fps"]))
    length = sample.frames
    for name, values in sample.arrays.items():
        more = np.repeat(values[-1:], extra, axis=0)
        if name == TIMESTAMP:
            more = values[-1] + np.arange(1, extra + 1) * np.median(np.diff(values))
        sample.arrays[name] = np.concatenate([values, more])
    sample.touched |= {name.removeprefix(f"{IMAGES}/") for name in sample.arrays if name.startswith(f"{IMAGES}/")}
    return (length - 1, length + extra - 1)


def not_simulated(sample: Sample, rng: np.random.Generator, severity: float) -> Frames:
    """The attribute `sim` is wrong or missing."""
    if rng.integers(2):
        sample.attrs["sim"] = False
    else:
        del sample.attrs["sim"]
    return None


def _jpeg(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def _codes(*codes: str) -> frozenset[str]:
    return frozenset(codes)


EPISODE_FAULTS = (
    Fault(6, "array or camera missing", _codes("E06-missing-array", "E06-camera-set"), missing),
    Fault(7, "other shape or type", _codes("E07-shape", "E07-dtype"), shape_or_type),
    Fault(8, "unequal lengths", _codes("E08-equal-lengths"), unequal_lengths, (1, 5), 1, "rows"),
    Fault(9, "NaN or infinite", _codes("E09-finite"), not_finite, (1, 10), 1, "values"),
    Fault(10, "too short", _codes("E10-minimum-length"), too_short, (15, 5), 15, "rows"),
    Fault(11, "time stands still", _codes("E11-timestamps"), time_goes_back, (1, 3), 1, "rows"),
    Fault(12, "frames dropped", _codes("W12-gap", "E12-gap"), dropped_frames, (1, 3, 20), 1, "frames"),
    Fault(13, "wrong rate", _codes("W13-measured-rate"), wrong_rate, (0.01, 0.03, 0.1), 0.03, "share"),
    Fault(14, "frozen camera", _codes("E14-frozen-camera"), frozen, (5, 10, 20), 10, "frames"),
    Fault(15, "late camera", _codes("W15-camera-lag"), late_camera, (1, 2, 4), 2, "frames"),
    Fault(16, "blank image", _codes("E16-blank-image"), blank, (1, 5), 1, "frames"),
    Fault(17, "cameras exchanged", _codes("E17-camera-swap"), swapped_cameras),
    Fault(18, "red and blue exchanged", _codes("W18-colour-order"), blue_for_red),
    Fault(19, "other image size", _codes("E19-image-size"), other_size, (1, 8), 1, "pixels"),
    Fault(20, "JPEG cut off", _codes("E20-undecodable-image"), broken_jpeg, (1, 5), 1, "frames"),
    Fault(
        21, "beyond joint limits", _codes("E21-joint-limits", "E21-action-bounds"), beyond_limits, (0.03, 0.06, 0.2),
        0.06, "of the range",
    ),
    Fault(22, "degrees", _codes("E22-degrees", "E22-degrees-in-one"), in_degrees),
    Fault(23, "gripper in another unit", _codes("E23-gripper-range", "E23-gripper-unit"), gripper_in_other_unit),
    Fault(24, "actions shifted", _codes("E24-alignment"), shifted_actions, (1, 2, 4), 1, "frames"),
    Fault(25, "jump", _codes("W25-jump"), teleport, (0.3, 0.5, 1.0), 1.0, "rad"),
    Fault(26, "stuck joint", _codes("W26-stuck", "W26-stuck-in-one"), stuck_joint),
    Fault(27, "clipped joint", _codes("W27-clipped"), clipped, (0.45, 0.6, 0.8), 0.6, "of the rows"),
    Fault(30, "other order", _codes("W30-dimension-order", "W30-joint-swap"), other_order, (0.3, 0.6), 0.6, "rad"),
    Fault(31, "idle end", _codes("W31-idle-end"), idle_end, (1.5, 2.5, 5.0), 2.5, "s"),
    Fault(34, "wrong attribute sim", _codes("E34-sim"), not_simulated),
)  # fmt: skip
"""Faults of the arrays of one episode; those of files and datasets are planted by who has a folder."""
