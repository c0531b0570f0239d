"""A sound dataset that looks like a robot's: arms that follow their actions, cameras that see them move."""

import dataclasses

import numpy as np

from roboimi.vla.data.contract import DatasetContract
from roboimi.vla.data.episode import write_episode
from roboimi.vla.data.manifest import DatasetRef, resolve_dataset, split_episodes, write_manifest
from roboimi.vla.data.validate.limits import Limits

ARM = ("waist", "shoulder", "elbow", "roll", "bend", "rotate", "gripper")
NAMES = tuple(f"{arm}_{joint}" for arm in ("left", "right") for joint in ARM)
CONTRACT = DatasetContract(
    state_dim=14,
    action_dim=14,
    environment_state_dim=0,
    cameras=("front", "left", "right"),
    image_height=32,
    image_width=32,
    fps=25,
    state_names=NAMES,
    action_names=NAMES,
)
LIMITS = Limits(
    state_low=(-3.0,) * 6 + (0.0,) + (-3.0,) * 6 + (0.0,),
    state_high=(3.0,) * 6 + (1.0,) + (3.0,) * 6 + (1.0,),
    action_low=(-3.0,) * 6 + (0.0,) + (-3.0,) * 6 + (0.0,),
    action_high=(3.0,) * 6 + (1.0,) + (3.0,) * 6 + (1.0,),
)
"""Ranges of the robot that these episodes are of."""


def robot_episode(seed: int, frames: int = 100) -> dict[str, np.ndarray]:
    """Each joint wanders about a place of its own; the state follows the action by one frame; blobs follow joints."""
    rng = np.random.default_rng(seed)
    time = np.arange(frames + 2) / CONTRACT.fps
    kernel = np.exp(-0.5 * (np.arange(-12, 13) / 4.0) ** 2)
    wander = rng.normal(size=(frames + 2 + 24, 14))
    wander = np.stack([np.convolve(wander[:, joint], kernel, "valid") for joint in range(14)], axis=1)
    path = np.linspace(-2.0, 2.0, 14) + 0.2 * wander / wander.std(axis=0)
    path[:, (6, 13)] = np.clip(0.5 + 0.1 * wander[:, (6, 13)], 0, 1)
    state = (path[:frames] + rng.normal(0, 1e-4, (frames, 14))).astype(np.float32)
    arrays = {
        "action": path[1 : frames + 1].astype(np.float32),
        "observations/qpos": state,
        "observations/qvel": np.gradient(state, 1 / CONTRACT.fps, axis=0).astype(np.float32),
        "observations/timestamp": time[:frames],
    }
    arrays["observations/qpos"][:, (6, 13)] = np.clip(state[:, (6, 13)], 0, 1)
    for number, camera in enumerate(CONTRACT.cameras):
        arrays[f"observations/images/{camera}"] = camera_images(number, state)
    return arrays


def camera_images(number: int, state: np.ndarray) -> np.ndarray:
    """(T, 32, 32, 3): a background of the camera's own, and reddish blobs where the joints are."""
    y, x = np.mgrid[0:32, 0:32] / 31.0
    ground = np.stack(
        [60 + 100 * (x if number == 0 else y if number == 1 else 1 - x), 70 + 60 * y, 50 + 20 * x], axis=-1
    )
    images = np.repeat(ground[None], len(state), axis=0)
    for joint in (0, 1, 2, 3, 7, 8, 9, 10):
        across = 0.5 + 0.8 * (state[:, joint] - np.linspace(-2.0, 2.0, 14)[joint])
        down = (joint % 7 + 0.5) / 5 * 0.9
        blob = np.exp(-((x - across[:, None, None]) ** 2 + (y - down) ** 2) / 0.006)
        images += blob[..., None] * np.array([120.0, 10.0, 0.0])
    return images.clip(0, 255).astype(np.uint8)


def write_robot_dataset(root, episodes: int = 12, frames: int = 100) -> DatasetRef:
    """Write the dataset into `root`."""
    root.mkdir(parents=True, exist_ok=True)
    files = [f"episode_{index:06d}.hdf5" for index in range(episodes)]
    for index, file in enumerate(files):
        attrs = {"sim": True, "success": True, "seed": index}
        write_episode(root / file, robot_episode(index, frames), CONTRACT, attrs)
    write_manifest(root, contract=CONTRACT, source={"kind": "test"}, split=split_episodes(files, 0.25))
    return resolve_dataset(root)


def with_limits(**changes) -> Limits:
    """The robot's limits with some changed."""
    return dataclasses.replace(LIMITS, **changes)
