"""ALOHA/ACT episodes as others recorded them become a dataset of ours: images decoded and resized, times filled in.

Rows are taken as they are recorded: row i of `/action` acts from time i to time i + 1. ACT's own loader reads episodes
whose attribute `sim` is false with the actions shifted by one row ("to make timesteps more aligned"), so that a wrong
attribute is an off-by-one that nobody sees. Here the attribute shifts nothing; it is kept, and a folder in which some
episodes say true and some false is refused, because an ACT loader would train on two alignments.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from roboimi.envs.images import resize_frame
from roboimi.errors import ConfigError, DataError
from roboimi.progress import Progress
from roboimi.storage.whole_folder import whole_folder
from roboimi.vla.data import act_images
from roboimi.vla.data.contract import STORED_IMAGE_SIZE, DatasetContract
from roboimi.vla.data.episode import (
    ACTION,
    ENVIRONMENT_STATE,
    STATE,
    TIMESTAMP,
    VELOCITY,
    expected_shapes,
    image_name,
    write_episode_frames,
)
from roboimi.vla.data.hdf5 import first_line, get_dataset, open_file, walk
from roboimi.vla.data.import_episodes import episode_files, infer_contract, rate
from roboimi.vla.data.manifest import DatasetRef, describe_episode, resolve_dataset, split_episodes, write_manifest

CLOCK_TOLERANCE = 0.1
"""How far the median rate of one episode may be from that of the first."""


def import_act(
    root: str | Path,
    out: str | Path,
    *,
    cameras: Sequence[str] | None = None,
    default_fps: int | None = None,
    image_size: tuple[int, int] | None = STORED_IMAGE_SIZE,
    colour_order: str = act_images.COLOUR_ORDERS[0],
    validation_fraction: float = 0.1,
    seed: int = 0,
) -> DatasetRef:
    """Convert the episodes in `root` into a new dataset folder `out`; nothing is left of a failed one.

    Args:
        root: a folder with `episode_<number>.hdf5` files; they are only read.
        out: a path that is free.
        cameras: the cameras to use, in the order of the view axis; None: those of the first episode, by name.
        default_fps: the rate (Hz) where episodes have neither the attribute `fps` nor timestamps.
        image_size: (height, width) that images are resized to, by the resize that rollouts use; None: as they are.
        colour_order: of compressed images, `bgr` or `rgb`; see `act_images`.
        validation_fraction: share of the episodes held out.
        seed: of the split.

    Raises:
        DataError: there are no episodes, one is damaged or differs from the first, or a value is not finite.
        ConfigError: `out` is not free, or the rate is unknown and `default_fps` is not given.
        DiskFullError, StoreError: the dataset cannot be written.
    """
    root, out = Path(root).expanduser().absolute(), Path(out).expanduser().absolute()
    if colour_order not in act_images.COLOUR_ORDERS:
        raise ConfigError(
            f"The colour order {colour_order!r} is unknown: choose {' or '.join(act_images.COLOUR_ORDERS)}."
        )
    files = episode_files(root)
    contract, rate_from = infer_contract(
        root / files[0], cameras=cameras, default_fps=default_fps, image_size=image_size, decode=True
    )
    simulated = _simulated(root, files)
    entries, notes = [], _Notes()
    with whole_folder(out) as folder:
        with Progress.start("import", total=len(files)) as progress:
            for name in files:
                path = root / name
                with open_file(path) as file:
                    _check_rate(path, file, contract.fps, default_fps)
                    arrays = _arrays(path, file, contract, notes)
                    images = _images(path, file, contract, colour_order, len(arrays[ACTION]), notes)
                    write_episode_frames(
                        folder / name, arrays, images, contract, _attributes(file) | {"sim": simulated}
                    )
                entries.append(describe_episode(folder / name))
                progress.update(len(entries), note=name)
        source = {"kind": "import", "format": "act-hdf5", "fps_from": rate_from, **notes.to_dict()}
        if notes.compressed:
            source["colour_order"] = colour_order
        split = split_episodes(files, validation_fraction, seed)
        write_manifest(folder, contract=contract, source=source, split=split, episodes=entries)
    return resolve_dataset(out)


class _Notes:
    """What the manifest says of how the episodes were made."""

    def __init__(self) -> None:
        self.timestamps: set[str] = set()
        self.compressed: set[str] = set()
        self.left_out: set[str] = set()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {name: sorted(values) for name, values in vars(self).items()}


def _simulated(root: Path, files: Sequence[str]) -> bool:
    """What the attribute `sim` of all episodes says; false where none has it, as ACT's loader takes it."""
    said: dict[bool, str] = {}
    for name in files:
        with open_file(root / name) as file:
            if "sim" in file.attrs:
                said.setdefault(bool(file.attrs["sim"]), name)
    if len(said) == 2:
        raise DataError(
            f"Episode {root / said[True]} has the attribute sim=True and {said[False]} has sim=False: correct the "
            "wrong one, loaders like ACT's shift the actions of the second kind by one row."
        )
    return next(iter(said), False)


def _check_rate(path: Path, file: h5py.File, fps: int, default_fps: int | None) -> None:
    found, said_by = rate(path, file, default_fps)
    # What clocks say differs a little from episode to episode; what attributes say does not.
    if abs(found - fps) > (CLOCK_TOLERANCE * fps if said_by == "timestamps" else 0):
        raise DataError(f"Episode {path} has {found} frames a second, the first episode has {fps}: import them apart.")


def _arrays(path: Path, file: h5py.File, contract: DatasetContract, notes: _Notes) -> dict[str, np.ndarray]:
    """The low-dimensional arrays of an episode, all finite; times follow from the rate where there are none."""
    there = {name: item for name, item in walk(file) if isinstance(item, h5py.Dataset)}
    names = [ACTION, STATE, *([ENVIRONMENT_STATE] if contract.environment_state_dim else [])]
    names += [name for name in (VELOCITY, TIMESTAMP) if name in there]
    shapes, arrays = expected_shapes(contract), {}
    for name in names:
        values = _read(path, get_dataset(file, name), name)
        if values.shape[1:] != shapes[name]:
            raise DataError(
                f"Episode {path} has /{name} in rows of {values.shape[1:]}, the first episode in rows of "
                f"{shapes[name]}: import them apart."
            )
        with np.errstate(over="ignore"):
            finite = np.isfinite(values.astype(np.float32))
        if not finite.all():
            row = int(np.argwhere(~finite)[0][0])
            raise DataError(f"Episode {path} has a value in /{name}, row {row}, that is not finite: leave it out.")
        arrays[name] = values
    notes.timestamps.add("recorded" if TIMESTAMP in arrays else "from the rate")
    arrays.setdefault(TIMESTAMP, np.arange(len(arrays[ACTION])) / contract.fps)
    images = {image_name(camera) for camera in contract.cameras}
    notes.left_out |= there.keys() - arrays.keys() - images - {"compress_len"}
    return arrays


def _read(path: Path, dataset: h5py.Dataset, name: str) -> np.ndarray:
    try:
        values = np.asarray(dataset[()], dtype=np.float64)
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        raise DataError(
            f"Episode {path} cannot be read at /{name} ({first_line(error)}): restore or drop it."
        ) from error
    return values[:, 0] if name == TIMESTAMP and values.ndim == 2 else values


def _images(
    path: Path, file: h5py.File, contract: DatasetContract, colour_order: str, rows: int, notes: _Notes
) -> Iterator[Mapping[str, np.ndarray]]:
    """One image of every camera for each row, at the contract's size."""
    streams = {}
    for camera in contract.cameras:
        dataset = get_dataset(file, image_name(camera))
        if dataset.shape[:1] != (rows,):
            raise DataError(
                f"Episode {path} has {dataset.shape[0] if dataset.shape else 0} images of the camera {camera!r} for "
                f"{rows} rows: record it again, or drop it."
            )
        if act_images.is_compressed(dataset):
            notes.compressed.add(camera)
        streams[camera] = act_images.frames(path, file, camera, colour_order)
    size = (contract.image_height, contract.image_width)
    for _ in range(rows):
        yield {camera: resize_frame(next(stream), size) for camera, stream in streams.items()}


def _attributes(file: h5py.File) -> dict[str, Any]:
    """The attributes worth keeping: plain values, without what no longer holds."""
    kept = {}
    for name, value in file.attrs.items():
        plain = value.item() if isinstance(value, np.generic) else value
        if name not in ("compress", "fps") and isinstance(plain, str | bool | int | float):
            kept[name] = plain
    return kept
