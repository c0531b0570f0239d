"""A LeRobot dataset (v3) becomes one of ours: HDF5 episodes, contract, manifest, with exact frame counts and times.

Rows and video frames are matched by number, never by the nearest time. What of a dataset cannot be kept (depth,
features that the contract has no name for) is listed in the manifest's `source`.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from roboimi.envs.images import resize_frame
from roboimi.errors import DataError
from roboimi.progress import Progress
from roboimi.storage.whole_folder import whole_folder
from roboimi.vla.data import lerobot_format as lerobot
from roboimi.vla.data.contract import STORED_IMAGE_SIZE, DatasetContract
from roboimi.vla.data.episode import ACTION, ENVIRONMENT_STATE, STATE, TIMESTAMP, VELOCITY, write_episode_frames
from roboimi.vla.data.lerobot_rows import DataFiles, EpisodeRows, picture
from roboimi.vla.data.lerobot_video import CameraVideos
from roboimi.vla.data.manifest import (
    SPLITS,
    DatasetRef,
    describe_episode,
    resolve_dataset,
    split_episodes,
    write_manifest,
)

SIDECAR = "meta/roboimi.json"
"""What an exported dataset of ours keeps beside the format: the attributes of its episodes."""


def import_lerobot(
    root: str | Path,
    out: str | Path,
    *,
    cameras: Sequence[str] | None = None,
    image_size: tuple[int, int] | None = STORED_IMAGE_SIZE,
    state: str = lerobot.STATE,
    action: str = lerobot.ACTION,
    simulated: bool = False,
    origin: Mapping[str, Any] | None = None,
    validation_fraction: float = 0.1,
    seed: int = 0,
) -> DatasetRef:
    """Convert the dataset in the folder `root` into a new dataset folder `out`; nothing is left of a failed one.

    Args:
        root: holds `meta/`, `data/` and `videos/`.
        out: a path that is free.
        cameras: names (`top` for the feature `observation.images.top`), in the order of the view axis; None: all.
        image_size: (height, width) that frames are resized to, by the resize that rollouts use; None: as they are.
        state: the feature that is the robot's state.
        action: the feature that is the action.
        simulated: what the episodes' attribute `sim` says, where the dataset is not one that was exported by us.
        origin: where the folder came from (hub, revision), for the manifest.
        validation_fraction: share of the episodes held out, where the dataset has no split `validation`.
        seed: of the split.

    Raises:
        DataError: the dataset is incomplete or contradicts itself, or a value is not finite.
        ConfigError: `out` is not free, or pyarrow or PyAV is not installed.
        DiskFullError, StoreError: the dataset cannot be written.
    """
    root, out = Path(root).expanduser().absolute(), Path(out).expanduser().absolute()
    dataset = lerobot.read_meta(root)
    chosen = _cameras(dataset, cameras)
    contract, tables = _contract(dataset, chosen, image_size, state, action)
    attrs = _attributes(dataset, simulated)
    with whole_folder(out) as folder, _Frames(dataset, chosen, contract) as frames:
        data = DataFiles(dataset, [*tables.values(), *(f for f in chosen.values() if f.dtype == "image")])
        entries = []
        with Progress.start("import", total=len(dataset.episodes)) as progress:
            for episode in dataset.episodes:
                rows = data.read(episode)
                path = folder / f"episode_{episode.index:06d}.hdf5"
                images = frames.of(episode, rows)
                write_episode_frames(path, _arrays(rows, tables), images, contract, attrs[episode.index])
                entries.append(describe_episode(path))
                progress.update(len(entries), note=path.name)
        data.finish()
        frames.finish()
        source = {
            "kind": "import",
            "format": f"lerobot {lerobot.CODEBASE_VERSION}",
            "robot_type": dataset.robot_type,
            "fps_from": "info.json",
            "features": {name: feature.key for name, feature in tables.items()},
            "left_out": sorted(_left_out(dataset, chosen, tables)),
            "image_sizes": {name: list(feature.image_size) for name, feature in chosen.items()},
            **(origin or {}),
        }
        split = _split(dataset, [entry.file for entry in entries], validation_fraction, seed)
        write_manifest(folder, contract=contract, source=source, split=split, episodes=entries)
    return resolve_dataset(out)


def camera_name(key: str) -> str:
    """`top` of `observation.images.top`; `observation.image` is `image`."""
    name = key.removeprefix(lerobot.IMAGES_PREFIX)
    return name if name != key else key.rpartition(".")[2]


def _cameras(dataset: lerobot.LeRobotDataset, wanted: Sequence[str] | None) -> dict[str, lerobot.Feature]:
    keys = [key for key, feature in dataset.features.items() if feature.is_camera]
    there = {camera_name(key): dataset.features[key] for key in keys}
    if len(there) != len(keys):
        raise DataError(f"{dataset.root} has two cameras of one name in {', '.join(keys)}: rename one.")
    colour = [name for name, feature in there.items() if not feature.is_depth and 3 in feature.shape]
    chosen = tuple(wanted or colour)
    if not chosen:
        raise DataError(f"{dataset.root} has no camera: a policy that sees needs at least one.")
    if missing := [name for name in chosen if name not in colour]:
        kind = "only as depth" if missing[0] in there else f"only {', '.join(colour)}"
        raise DataError(f"{dataset.root} has the camera {missing[0]!r} not at all or {kind}: choose among its cameras.")
    return {name: there[name] for name in chosen}


def _contract(
    dataset: lerobot.LeRobotDataset,
    cameras: Mapping[str, lerobot.Feature],
    image_size: tuple[int, int] | None,
    state: str,
    action: str,
) -> tuple[DatasetContract, dict[str, lerobot.Feature]]:
    """The contract, and the feature behind each array of an episode."""
    for key in (state, action):
        if key not in dataset.features or dataset.features[key].is_camera or len(dataset.features[key].shape) != 1:
            vectors = ", ".join(k for k, f in dataset.features.items() if len(f.shape) == 1 and not f.is_camera)
            raise DataError(f"{dataset.root} has no vector {key!r}: name one of {vectors} with --state or --action.")
    tables = {STATE: dataset.features[state], ACTION: dataset.features[action]}
    velocity = dataset.features.get(lerobot.VELOCITY)
    if velocity is not None and velocity.shape == tables[STATE].shape:
        tables[VELOCITY] = velocity
    environment = dataset.features.get(lerobot.ENVIRONMENT_STATE)
    if environment is not None and len(environment.shape) == 1:
        tables[ENVIRONMENT_STATE] = environment
    if lerobot.CLOCK in dataset.features:
        tables[TIMESTAMP] = dataset.features[lerobot.CLOCK]
    sizes = {feature.image_size for feature in cameras.values()}
    if image_size is None and len(sizes) > 1:
        raise DataError(f"{dataset.root} has images of several sizes ({sorted(sizes)}): say --image-size HxW.")
    height, width = image_size or sizes.pop()
    contract = DatasetContract(
        state_dim=tables[STATE].shape[0],
        action_dim=tables[ACTION].shape[0],
        environment_state_dim=environment.shape[0] if ENVIRONMENT_STATE in tables else 0,
        cameras=tuple(cameras),
        image_height=height,
        image_width=width,
        fps=dataset.fps,
        state_names=_names(tables[STATE]),
        action_names=_names(tables[ACTION]),
    )
    return contract, tables


def _names(feature: lerobot.Feature) -> tuple[str, ...]:
    return feature.names if len(feature.names) == feature.shape[0] else ()


def _arrays(rows: EpisodeRows, tables: Mapping[str, lerobot.Feature]) -> dict[str, np.ndarray]:
    arrays = {name: rows.columns[feature.key] for name, feature in tables.items()}
    clock = arrays.get(TIMESTAMP)
    return {**arrays, TIMESTAMP: rows.timestamp if clock is None else clock[:, 0]}


class _Frames:
    """The frames of all chosen cameras, side by side, at the contract's size."""

    def __init__(
        self, dataset: lerobot.LeRobotDataset, cameras: Mapping[str, lerobot.Feature], contract: DatasetContract
    ):
        self.cameras, self.size = cameras, contract.image_shape[:2]
        self.videos = {n: CameraVideos(dataset, f.key) for n, f in cameras.items() if f.dtype == "video"}

    def of(self, episode: lerobot.Episode, rows: EpisodeRows) -> Iterator[dict[str, np.ndarray]]:
        """One image of every camera for each row."""
        streams = {
            name: self.videos[name].frames(episode) if name in self.videos else _decoded(episode, rows, feature)
            for name, feature in self.cameras.items()
        }
        for _ in range(episode.length):
            yield {name: self._sized(episode, name, next(stream)) for name, stream in streams.items()}

    def finish(self) -> None:
        """Make sure that no video goes on after its last episode."""
        for video in self.videos.values():
            video.finish()

    def _sized(self, episode: lerobot.Episode, name: str, image: np.ndarray) -> np.ndarray:
        expected = self.cameras[name].image_size
        if image.shape[:2] != expected:
            raise DataError(
                f"Episode {episode.index} has frames {image.shape[:2]} of the camera {name!r}, not {expected} as "
                "meta/info.json says: restore it."
            )
        return resize_frame(image, self.size)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for video in self.videos.values():
            video.close()


def _decoded(episode: lerobot.Episode, rows: EpisodeRows, feature: lerobot.Feature) -> Iterator[np.ndarray]:
    for number, encoded in enumerate(rows.pictures[feature.key]):
        yield picture(f"Episode {episode.index}, frame {number} of {feature.key},", encoded)


def _left_out(
    dataset: lerobot.LeRobotDataset, cameras: Mapping[str, lerobot.Feature], tables: Mapping[str, lerobot.Feature]
) -> set[str]:
    kept = {feature.key for feature in (*cameras.values(), *tables.values())}
    return dataset.features.keys() - kept - {"timestamp", "frame_index", "episode_index", "index", "task_index"}


def _attributes(dataset: lerobot.LeRobotDataset, simulated: bool) -> list[dict[str, Any]]:
    """Attributes of every episode: its task, and what our own export noted."""
    attrs = [{"sim": simulated, "task": "; ".join(episode.tasks)} for episode in dataset.episodes]
    with contextlib.suppress(FileNotFoundError):
        path = dataset.root / SIDECAR
        try:
            noted = json.loads(path.read_text())["episodes"]
            for mine, episode in zip(attrs, noted, strict=True):
                mine.update({k: v for k, v in episode["attrs"].items() if isinstance(v, str | bool | int | float)})
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise DataError(f"{path} cannot be understood ({error}): restore or remove it.") from error
    return attrs


def _split(dataset: lerobot.LeRobotDataset, files: list[str], fraction: float, seed: int) -> dict[str, list[str]]:
    """The dataset's own split where it has our two parts, and covers every episode once; else one is drawn."""
    parts = [dataset.splits.get(name, range(0)) for name in SPLITS]
    if parts[1] and sorted(n for part in parts for n in part) == list(range(len(files))):
        return {name: [files[n] for n in part] for name, part in zip(SPLITS, parts, strict=True)}
    return split_episodes(files, fraction, seed)
