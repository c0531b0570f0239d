"""Making a dataset of a user's own ACT-style episodes: look at them, infer the contract, write the manifest.

The episodes stay as they are. What is wrong with them is the validation's to say; ingest asks only for what a contract
needs: `/action`, `/observations/qpos` and at least one camera of uint8 images. Episodes that cannot stay as they are
(compressed images, several sizes) are converted by `import_act`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from roboimi.errors import ConfigError, DataError
from roboimi.progress import Progress
from roboimi.vla.data import act_images
from roboimi.vla.data.contract import DatasetContract
from roboimi.vla.data.episode import ACTION, ENVIRONMENT_STATE, IMAGES, STATE, TIMESTAMP, image_name
from roboimi.vla.data.hdf5 import get_dataset, open_file, walk
from roboimi.vla.data.manifest import (
    MANIFEST_NAME,
    DatasetRef,
    describe_episode,
    is_episode_name,
    resolve_dataset,
    split_episodes,
    write_manifest,
)


def ingest(
    root: str | Path,
    *,
    cameras: Sequence[str] | None = None,
    default_fps: int | None = None,
    validation_fraction: float = 0.1,
    seed: int = 0,
) -> DatasetRef:
    """Give a folder of episodes a manifest; a folder that has one is resolved as it is.

    Args:
        root: a folder with `episode_<number>.hdf5` files.
        cameras: the cameras to use, in the order of the view axis; None: those of the first episode, by name.
        default_fps: the rate (Hz) where episodes have neither the attribute `fps` nor timestamps.
        validation_fraction: share of the episodes held out.
        seed: of the split.

    Raises:
        DataError: there are no episodes, or the first one lacks what a contract needs.
        ConfigError: the rate is unknown and `default_fps` is not given.
        DiskFullError, StoreError: the manifest cannot be written.
    """
    root = Path(root).expanduser().absolute()
    if (root / MANIFEST_NAME).exists():
        return resolve_dataset(root)
    files = episode_files(root)
    contract, rate_from = infer_contract(root / files[0], cameras=cameras, default_fps=default_fps)
    entries = []
    with Progress.start("import", total=len(files)) as progress:
        for file in files:
            progress.update(len(entries), note=file)
            entries.append(describe_episode(root / file))
    write_manifest(
        root,
        contract=contract,
        source={"kind": "import", "fps_from": rate_from},
        split=split_episodes(files, validation_fraction, seed),
        episodes=entries,
    )
    return resolve_dataset(root)


def episode_files(root: Path) -> list[str]:
    """The names of the episodes in a folder, by number.

    Raises:
        DataError: there are none.
    """
    if not root.is_dir():
        raise DataError(f"Dataset folder {root} is not there: correct the path.")
    files = sorted((path.name for path in root.iterdir() if is_episode_name(path.name)), key=_number)
    if not files:
        raise DataError(f"Dataset folder {root} has no episodes: put files named episode_<number>.hdf5 there.")
    return files


def infer_contract(
    path: Path,
    *,
    cameras: Sequence[str] | None = None,
    default_fps: int | None = None,
    image_size: tuple[int, int] | None = None,
    decode: bool = False,
) -> tuple[DatasetContract, str]:
    """The contract that one episode keeps, and where its rate was found (`attribute`, `timestamps` or `default`).

    Args:
        path: of the episode.
        cameras: the cameras to use, in the order of the view axis; None: all, by name.
        default_fps: the rate (Hz) where the episode does not tell it.
        image_size: (height, width) that images will be resized to; None: as they are.
        decode: whether compressed images will be decoded; they are refused otherwise.

    Raises:
        DataError, ConfigError: see `ingest`.
    """
    with open_file(path) as file:
        arrays = {name: item for name, item in walk(file) if isinstance(item, h5py.Dataset)}
        action, state = (_table(path, get_dataset(file, name), name) for name in (ACTION, STATE))
        there = sorted(name.removeprefix(f"{IMAGES}/") for name in arrays if name.startswith(f"{IMAGES}/"))
        chosen = _chosen_cameras(path, there, cameras)
        sizes = {camera: _image_size(path, file, camera, decode) for camera in chosen}
        height, width = image_size or sizes[chosen[0]]
        if image_size is None and len(set(sizes.values())) > 1:
            raise DataError(
                f"Episode {path} has images of several sizes ({sizes}): bring them to one with `roboimi import act "
                f"{path.parent} OUT --image-size HxW`."
            )
        environment_state = 0
        if ENVIRONMENT_STATE in arrays:
            environment_state = _table(path, arrays[ENVIRONMENT_STATE], ENVIRONMENT_STATE)
        fps, rate_from = rate(path, file, default_fps)
    contract = DatasetContract(
        state_dim=state,
        action_dim=action,
        environment_state_dim=environment_state,
        cameras=chosen,
        image_height=height,
        image_width=width,
        fps=fps,
    )
    return contract, rate_from


def _number(name: str) -> int:
    return int(name.removeprefix("episode_").removesuffix(".hdf5"))


def _chosen_cameras(path: Path, there: list[str], wanted: Sequence[str] | None) -> tuple[str, ...]:
    chosen = tuple(wanted or there)
    if not chosen:
        raise DataError(f"Episode {path} has no camera under /{IMAGES}: a policy that sees needs at least one.")
    if missing := sorted(set(chosen) - set(there)):
        raise DataError(f"Episode {path} has no camera {missing[0]!r}: choose among {', '.join(there)}.")
    return chosen


def _table(path: Path, dataset: h5py.Dataset, name: str) -> int:
    """Width of a (T, n) array."""
    if dataset.shape is None or len(dataset.shape) != 2 or 0 in dataset.shape:
        raise DataError(f"Episode {path} has /{name} of shape {dataset.shape}: give one row a frame.")
    return dataset.shape[1]


def _image_size(path: Path, file: h5py.File, camera: str, decode: bool) -> tuple[int, int]:
    if not decode and act_images.is_compressed(get_dataset(file, image_name(camera))):
        raise DataError(
            f"Episode {path} holds compressed images (camera {camera!r}): have them decoded with `roboimi import act "
            f"{path.parent} OUT`."
        )
    return act_images.image_size(path, file, camera)


def rate(path: Path, file: h5py.File, default_fps: int | None) -> tuple[int, str]:
    """Frames a second of an episode, and where that was found: `attribute`, `timestamps` or `default`.

    Raises:
        DataError: what the episode says is no whole rate.
        ConfigError: it says nothing, and `default_fps` is not given.
    """
    stated: Any = file.attrs.get("fps")
    if stated is not None:
        if float(stated) != round(float(stated)) or stated < 1:
            raise DataError(f"Episode {path} states {stated} frames a second: give a whole number.")
        return round(float(stated)), "attribute"
    if TIMESTAMP in dict(walk(file)):
        steps = np.diff(get_dataset(file, TIMESTAMP)[()].reshape(-1))
        median = float(np.median(steps)) if len(steps) else 0.0
        if not median > 0 or round(1 / median) < 1:
            raise DataError(f"Episode {path} has timestamps that do not go on: give seconds, one a frame.")
        return round(1 / median), "timestamps"
    if default_fps is None:
        raise ConfigError(
            f"Episode {path} has neither the attribute fps nor timestamps: say the rate with "
            f"`roboimi import act {path.parent} --fps HZ`."
        )
    return default_fps, "default"
