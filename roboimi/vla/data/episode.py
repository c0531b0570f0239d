"""Episodes on disk: one HDF5 file each, in the style of ACT (https://github.com/tonyzhaozh/act).

    /action                            (T, A) f32   absolute joint targets; row i acts from time i to time i+1
    /observations/qpos                 (T, S) f32   joint positions (rad; gripper 0 closed to 1 open) at time i
    /observations/qvel                 (T, S) f32   joint velocities (rad/s), optional
    /observations/timestamp            (T,)   f64   seconds, optional in imported data
    /observations/environment_state    (T, E) f32   where the contract says E > 0 (cube x y z in m, quaternion w x y z)
    /observations/images/<camera>      (T, H, W, 3) u8, one image a chunk, gzip

Attributes: `sim` (bool), `fps` (int, Hz), `success` (bool), `seed` (int), `task` (str), `stage` (int, highest reward).
Every array carries a fletcher32 checksum, so that damaged bytes are an error instead of other data.
"""

import contextlib
import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
import numpy as np

from roboimi.errors import DataError
from roboimi.storage.atomic import atomic_path
from roboimi.vla.data.contract import DatasetContract
from roboimi.vla.data.hdf5 import first_line, get_dataset, open_file
from roboimi.vla.data.hdf5_writing import HDF5Writer

ACTION = "action"
STATE = "observations/qpos"
VELOCITY = "observations/qvel"
TIMESTAMP = "observations/timestamp"
ENVIRONMENT_STATE = "observations/environment_state"
IMAGES = "observations/images"


def image_name(camera: str) -> str:
    """Where the images of a camera lie."""
    return f"{IMAGES}/{camera}"


def expected_shapes(contract: DatasetContract) -> dict[str, tuple[int, ...]]:
    """Name and shape of one row of every array that an episode may hold under `contract`."""
    shapes: dict[str, tuple[int, ...]] = {
        ACTION: (contract.action_dim,),
        STATE: (contract.state_dim,),
        VELOCITY: (contract.state_dim,),
        TIMESTAMP: (),
    }
    if contract.environment_state_dim:
        shapes[ENVIRONMENT_STATE] = (contract.environment_state_dim,)
    return shapes | {image_name(camera): contract.image_shape for camera in contract.cameras}


def write_episode(
    path: Path, arrays: Mapping[str, np.ndarray], contract: DatasetContract, attrs: Mapping[str, Any]
) -> None:
    """Write one episode: whole and durable under `path`, or not at all.

    Args:
        path: where; an episode already there is replaced.
        arrays: by name in the file ("action", "observations/qpos", "observations/images/top", ...), each with T rows.
            All that `contract` knows are required but `observations/qvel`.
        contract: the dataset's.
        attrs: of the episode; `fps` is added from the contract.

    Raises:
        DataError: an array is missing, unknown, or has another shape than the contract says.
        DiskFullError: there is no room.
        StoreError: the folder cannot be written.
    """
    path = Path(path)
    _checked_frames(path, arrays, contract)
    with atomic_path(path) as temporary, HDF5Writer(temporary) as writer:
        file = writer.file
        file.attrs["sim"] = True
        for name, value in {**attrs, "fps": contract.fps}.items():
            file.attrs[name] = value
        for name, array in arrays.items():
            rows = np.asarray(array, dtype=_stored_dtype(name))
            file.create_dataset(name, data=rows, **_storage(name, rows.shape))


def write_episode_frames(
    path: Path,
    arrays: Mapping[str, np.ndarray],
    frames: Iterable[Mapping[str, np.ndarray]],
    contract: DatasetContract,
    attrs: Mapping[str, Any],
) -> None:
    """Write one episode whose images come one frame at a time, so that no more than one is ever in memory.

    Args:
        path: where; an episode already there is replaced.
        arrays: as in `write_episode`, without the images.
        frames: T times a (H, W, 3) uint8 image for every camera of the contract, by camera.
        contract: the dataset's.
        attrs: of the episode; `fps` is added from the contract.

    Raises:
        DataError: see `write_episode`; or there are more or fewer frames than rows.
        DiskFullError: there is no room.
        StoreError: the folder cannot be written.
    """
    path = Path(path)
    rows = _checked_frames(path, arrays, dataclasses.replace(contract, cameras=()))
    with atomic_path(path) as temporary, HDF5Writer(temporary) as writer:
        file = writer.file
        for name, value in {**attrs, "fps": contract.fps}.items():
            file.attrs[name] = value
        for name, array in arrays.items():
            stored = np.asarray(array, dtype=_stored_dtype(name))
            file.create_dataset(name, data=stored, **_storage(name, stored.shape))
        shape = (rows, *contract.image_shape)
        images = {
            camera: file.create_dataset(
                image_name(camera), shape=shape, dtype=np.uint8, **_storage(image_name(camera), shape)
            )
            for camera in contract.cameras
        }
        written = 0
        for frame in frames:
            if written == rows:
                raise DataError(f"Episode {path} was given more than the {rows} frames that it has rows.")
            for camera, dataset in images.items():
                image = frame[camera]
                if image.shape != contract.image_shape or image.dtype != np.uint8:
                    raise DataError(
                        f"Episode {path} was given an image of {camera} as {image.dtype} {image.shape}, not uint8 "
                        f"{contract.image_shape} as the contract says."
                    )
                dataset[written] = image
            writer.check()
            written += 1
        if written != rows:
            raise DataError(f"Episode {path} was given {written} frames for {rows} rows.")


def _storage(name: str, shape: tuple[int, ...]) -> dict[str, Any]:
    """How HDF5 keeps an array of `shape` = (T, ...)."""
    if not name.startswith(f"{IMAGES}/"):
        return {"chunks": shape, "fletcher32": True}
    # Rendered frames shrink to a seventeenth and are read in a quarter of a millisecond. Not lzf: it is slower to read,
    # and its output depends on uninitialised memory: equal arrays, unequal digests.
    return {"chunks": (1, *shape[1:]), "fletcher32": True, "compression": "gzip", "compression_opts": 1}


def _stored_dtype(name: str) -> type:
    if name.startswith(f"{IMAGES}/"):
        return np.uint8
    return np.float64 if name == TIMESTAMP else np.float32


def _checked_frames(path: Path, arrays: Mapping[str, np.ndarray], contract: DatasetContract) -> int:
    """T, once every array is known to be what the contract says."""
    shapes = expected_shapes(contract)
    if missing := sorted(shapes.keys() - arrays.keys() - {VELOCITY}):
        raise DataError(f"Episode {path} was given no {', '.join(missing)}: record what the contract names.")
    if unknown := sorted(arrays.keys() - shapes.keys()):
        raise DataError(f"Episode {path} was given {', '.join(unknown)}, which the contract does not name.")
    frames = len(arrays[ACTION])
    for name, array in arrays.items():
        if np.shape(array) != (frames, *shapes[name]):
            raise DataError(
                f"Episode {path} was given {name} of shape {np.shape(array)}, not {(frames, *shapes[name])} as the "
                "contract says."
            )
        if name.startswith(f"{IMAGES}/") and np.asarray(array).dtype != np.uint8:
            raise DataError(f"Episode {path} was given {name} as {np.asarray(array).dtype}: give uint8 in 0..255.")
    if frames == 0:
        raise DataError(f"Episode {path} was given no frames: record at least one.")
    return frames


class EpisodeFile:
    """One episode, opened on the first read.

    The handle never leaves its process: it is dropped when the object is pickled, and opened anew in a forked child.
    Use as a context manager, or call `close`.

    Raises:
        DataError: on every read, when the file or an array is missing, damaged or not what the contract says.
    """

    def __init__(self, path: Path, contract: DatasetContract):
        self.path = Path(path)
        self.contract = contract
        self._file: h5py.File | None = None
        self._opened_by: int | None = None

    @property
    def frames(self) -> int:
        """T, the number of rows."""
        return self._dataset(ACTION).shape[0]

    def attrs(self) -> dict[str, Any]:
        """The episode's attributes as Python values."""
        with self._reading("attributes"):
            return {name: getattr(value, "tolist", lambda v=value: v)() for name, value in self._handle().attrs.items()}

    def action(self) -> np.ndarray:
        """(T, A) float32."""
        return self._floats(ACTION, np.float32)

    def state(self) -> np.ndarray:
        """(T, S) float32."""
        return self._floats(STATE, np.float32)

    def velocity(self) -> np.ndarray:
        """(T, S) float32, where the episode has it."""
        return self._floats(VELOCITY, np.float32)

    def environment_state(self) -> np.ndarray:
        """(T, E) float32."""
        return self._floats(ENVIRONMENT_STATE, np.float32)

    def timestamp(self) -> np.ndarray:
        """(T,) float64, seconds."""
        return self._floats(TIMESTAMP, np.float64)

    def images(self, indices: Sequence[int] | np.ndarray | range) -> np.ndarray:
        """(n, V, H, W, 3) uint8: all cameras at the frames `indices`, in that order; repeated frames are read once."""
        wanted, places = np.unique(np.asarray(indices, dtype=np.int64), return_inverse=True)
        images = np.empty((len(wanted), self.contract.num_views, *self.contract.image_shape), dtype=np.uint8)
        for view, camera in enumerate(self.contract.cameras):
            dataset = self._dataset(image_name(camera))
            with self._reading(f"/{image_name(camera)} at frames {wanted.min()} to {wanted.max()}"):
                if len(wanted) == wanted[-1] - wanted[0] + 1:
                    images[:, view] = dataset[wanted[0] : wanted[-1] + 1]
                else:
                    for place, frame in enumerate(wanted):
                        images[place, view] = dataset[frame]
        return images if np.array_equal(places, np.arange(len(wanted))) else images[places]

    def close(self) -> None:
        """Let go of the file; a later read opens it again."""
        if self._file is not None:
            self._file.close()
        self._file = self._opened_by = None

    @property
    def is_open(self) -> bool:
        """Whether this process holds the file open."""
        return self._file is not None and self._opened_by == os.getpid()

    def _handle(self) -> h5py.File:
        if not self.is_open:
            self.close()
            self._file, self._opened_by = open_file(self.path), os.getpid()
        return self._file

    def _dataset(self, name: str) -> h5py.Dataset:
        """The array at `name`, once its rows have the contract's shape."""
        with self._reading(f"/{name}"):
            dataset = get_dataset(self._handle(), name)
            expected = expected_shapes(self.contract).get(name)
            if not dataset.shape or dataset.shape[1:] != expected:
                raise DataError(
                    f"Episode {self.path} has /{name} of shape {dataset.shape}, not rows of {expected} as the contract "
                    "says: validate the dataset."
                )
            if name.startswith(f"{IMAGES}/") and dataset.dtype != np.uint8:
                raise DataError(f"Episode {self.path} has /{name} as {dataset.dtype}, not uint8: record it again.")
        return dataset

    def _floats(self, name: str, dtype: type) -> np.ndarray:
        dataset = self._dataset(name)
        with self._reading(f"/{name}"):
            return np.ascontiguousarray(dataset[()], dtype=dtype)

    @contextlib.contextmanager
    def _reading(self, what: str) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError, LookupError, ValueError) as error:
            reason = first_line(error)
            raise DataError(f"Episode {self.path} cannot be read at {what} ({reason}): restore or drop it.") from error

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None, "_opened_by": None}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
