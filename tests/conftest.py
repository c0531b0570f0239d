"""Helpers that several parts of the tests use: a small real dataset on disk."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from roboimi.vla.data.contract import DatasetContract
from roboimi.vla.data.episode import write_episode
from roboimi.vla.data.manifest import DatasetRef, resolve_dataset, split_episodes, write_manifest

pytest_plugins = ["minio_server", "docker_engine"]

TINY_CAMERAS = ("top", "left", "right")


def tiny_episode(contract: DatasetContract, frames: int, seed: int) -> dict[str, np.ndarray]:
    """Arrays of one episode: smooth random joints that follow the actions, a cube on its way, pictures that move."""
    rng = np.random.default_rng(seed)
    time = np.arange(frames) / contract.fps
    phases = rng.uniform(0, 2 * np.pi, contract.action_dim)
    action = 0.5 * np.sin(2 * np.pi * 0.4 * time[:, None] + phases) + rng.normal(0, 0.1, contract.action_dim)
    qpos = np.zeros((frames, contract.state_dim), dtype=np.float32)
    shared = min(contract.state_dim, contract.action_dim)
    qpos[1:, :shared] = action[:-1, :shared]
    qpos[0, :shared] = action[0, :shared]
    arrays = {
        "action": action.astype(np.float32),
        "observations/qpos": qpos,
        "observations/qvel": np.diff(qpos, axis=0, prepend=qpos[:1]) * np.float32(contract.fps),
        "observations/timestamp": time,
    }
    if contract.environment_state_dim:
        start = rng.uniform(-0.2, 0.2, contract.environment_state_dim)
        drift = np.linspace(0, 0.1, frames)[:, None]
        arrays["observations/environment_state"] = (start + drift).astype(np.float32)
    for camera in contract.cameras:
        picture = rng.integers(0, 256, contract.image_shape, dtype=np.uint8)
        arrays[f"observations/images/{camera}"] = np.stack([np.roll(picture, frame, axis=1) for frame in range(frames)])
    return arrays


def make_tiny_dataset(
    root: Path,
    *,
    episodes: int = 3,
    frames: int | Sequence[int] = 20,
    cameras: Sequence[str] = TINY_CAMERAS,
    image_size: tuple[int, int] = (256, 256),
    state_dim: int = 14,
    action_dim: int = 14,
    environment_state_dim: int = 7,
    fps: int = 25,
    validation_fraction: float = 0.34,
    seed: int = 0,
) -> DatasetRef:
    """Write a dataset of real HDF5 episodes with a manifest into `root` and resolve it.

    Args:
        root: an empty or missing folder.
        episodes: how many; one of three is held out for validation by default.
        frames: T of every episode, or one T each.
        cameras: camera names; their order is the view axis.
        image_size: (H, W) as stored.
        state_dim: S.
        action_dim: A.
        environment_state_dim: E; 0 leaves the array out.
        fps: rows per second.
        validation_fraction: share of the episodes held out.
        seed: of everything random.
    """
    contract = DatasetContract(
        state_dim=state_dim,
        action_dim=action_dim,
        environment_state_dim=environment_state_dim,
        cameras=tuple(cameras),
        image_height=image_size[0],
        image_width=image_size[1],
        fps=fps,
    )
    root.mkdir(parents=True, exist_ok=True)
    lengths = [frames] * episodes if isinstance(frames, int) else list(frames)
    files = [f"episode_{index:06d}.hdf5" for index in range(episodes)]
    for index, (file, length) in enumerate(zip(files, lengths, strict=True)):
        attrs = {"sim": True, "success": True, "seed": seed + index, "task": "tiny", "stage": 4}
        write_episode(root / file, tiny_episode(contract, length, seed * 1000 + index), contract, attrs)
    write_manifest(root, contract=contract, source={"kind": "tiny"}, split=split_episodes(files, validation_fraction))
    return resolve_dataset(root)


@pytest.fixture
def tiny_dataset(tmp_path: Path) -> DatasetRef:
    """Three episodes of 20 frames, three cameras of 256x256, S = A = 14, E = 7."""
    return make_tiny_dataset(tmp_path / "tiny")


@pytest.fixture
def tiny_dataset_maker(tmp_path: Path) -> Callable[..., DatasetRef]:
    """`make_tiny_dataset` with a fresh folder at each call: `tiny_dataset_maker(frames=8, cameras=["top"])`."""
    made = 0

    def make(**options: object) -> DatasetRef:
        nonlocal made
        made += 1
        return make_tiny_dataset(tmp_path / f"tiny_{made}", **options)

    return make
