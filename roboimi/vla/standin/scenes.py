"""Random scenes of the transfer task with known cube positions, rendered exactly as the policy sees them.

Scenes come in blocks, each built around one noisy expert episode, in four kinds:

    kind       arms                             cube                                                share
    home       at home, a little noise          anywhere on the table                               7/32
    reaching   as somewhere in the episode      anywhere on the table, independent of the arms      13/32
    floating   as somewhere in the episode      anywhere in the working volume, any rotation        2/32
    true       as in the episode                as in the episode, gripped and handed over too      10/32

In the first three the cube is teleported: nothing about it can be inferred from the arms, so a tower that is trained on
them must look at the cube. The folder that `render_scenes` fills::

    images.npy    (N, V, 256, 256, 3) uint8 RGB
    labels.npz    cube (N, 3) float32 m, agent_pos (N, 14) float32, kind (N,) uint8, red (N, V) int32 pixels of the cube
    SCENES.json   the recipe; written last, so a folder that has it is whole
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mujoco
import numpy as np

from roboimi.envs import scene
from roboimi.envs.demonstration import demonstrate
from roboimi.envs.images import resize_frame
from roboimi.envs.transfer_cube import DEFAULT_CAMERAS, TransferCubeEnv
from roboimi.errors import ConfigError
from roboimi.progress import Progress
from roboimi.storage.atomic import write_json_atomically
from roboimi.storage.keys import canonical_json, sha256_json

IMAGE_SIZE = 256
KINDS = ("home", "reaching", "floating", "true")
PER_BLOCK = (7, 13, 2, 10)
BLOCK = sum(PER_BLOCK)
VISIBLE_PIXELS = 24
"""A view with fewer pixels of the cube than this does not count as seeing it; unoccluded it has about 600."""
RED_MARGIN = 60  # of 255: how much the cube's red exceeds green and blue, also on its darkest side

SPAWN_MARGIN = 0.03  # m around the range of starts, so that the range's edge is no edge of the training data
JOINT_NOISE = 0.03  # rad, around the episode's poses: policies stray further than experts
RESTING_Z = 0.02
FLOATING_LOW, FLOATING_HIGH = (-0.15, 0.35, 0.05), (0.25, 0.65, 0.35)
GRASP_SHARE = 0.4  # of an episode's steps, until the right gripper has closed
_ARM_QPOS = np.r_[0:6, 8:14]
_CUBE_QPOS = slice(16, 23)
_PHYSICS = "physics"
_RECIPE_VERSION = 1


@dataclass(frozen=True)
class Scenes:
    """Rendered scenes and their labels; arrays as in the module's docstring, `cameras` in the order of the V axis."""

    images: np.ndarray
    cube: np.ndarray
    agent_pos: np.ndarray
    kind: np.ndarray
    red: np.ndarray
    cameras: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.cube)

    @property
    def visible(self) -> np.ndarray:
        """(N, V) bool: which view sees the cube."""
        return self.red >= VISIBLE_PIXELS

    def of_kind(self, *kinds: str) -> np.ndarray:
        """(N,) bool: scenes of these kinds."""
        return np.isin(self.kind, [KINDS.index(kind) for kind in kinds])


def render_scenes(root: Path, count: int, seed: int, cameras: Sequence[str] = DEFAULT_CAMERAS) -> Scenes:
    """Render `count` scenes into a folder below `root` that is named after the recipe, or load what is already there.

    Args:
        root: folder for renders; it is created, and may be deleted at any time.
        count: N, rounded up to whole blocks.
        seed: the scenes follow from it alone; the first blocks of a longer run are those of a shorter one.
        cameras: the views, in the order of the V axis.

    Raises:
        ConfigError: the scene has no camera of that name, or fewer than one scene is asked for.
        RenderError: no OpenGL context can be made on this machine.
    """
    if count < 1:
        raise ConfigError(f"{count} scenes cannot be rendered: ask for at least one.")
    env = TransferCubeEnv(cameras=cameras, require_release=True)  # as recorded: until the right gripper has let go
    try:
        blocks = -(-count // BLOCK)
        recipe = _recipe(env, blocks, seed)
        folder = root / f"scenes-{sha256_json(recipe)[:16]}"
        if not (folder / "SCENES.json").is_file():
            _render(env, folder, blocks, seed)
            write_json_atomically(folder / "SCENES.json", recipe)
    finally:
        env.close()
    return load_scenes(folder)


def load_scenes(folder: Path) -> Scenes:
    """Open a folder of `render_scenes`, images memory-mapped."""
    recipe = json.loads((folder / "SCENES.json").read_text())
    with np.load(folder / "labels.npz") as labels:
        arrays = dict(labels)
    images = np.load(folder / "images.npy", mmap_mode="r")
    return Scenes(images=images, cameras=tuple(camera["name"] for camera in recipe["cameras"]), **arrays)


def sample_block(env: TransferCubeEnv, seed: int, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw one block of scenes → (BLOCK, 23) float64 qpos of arms and cube, and (BLOCK,) uint8 index into `KINDS`."""
    rng = np.random.default_rng((seed, block))
    episode = _expert_episode(env, rng)
    home, reaching, floating, true = PER_BLOCK
    scenes = [_teleported(episode[0], _on_table(rng), rng, JOINT_NOISE / 3) for _ in range(home)]
    scenes += [_teleported(_some_step(episode, rng), _on_table(rng), rng, JOINT_NOISE) for _ in range(reaching)]
    scenes += [_teleported(_some_step(episode, rng), _in_air(rng), rng, JOINT_NOISE) for _ in range(floating)]
    scenes += [_some_step(episode, rng) for _ in range(true)]
    return np.stack(scenes), np.repeat(np.arange(len(KINDS), dtype=np.uint8), PER_BLOCK)


def cube_mask(images: np.ndarray) -> np.ndarray:
    """(..., H, W) bool: the pixels of (..., H, W, 3) uint8 images that show the cube, the scene's one red thing."""
    red, green, blue = (images[..., channel].astype(np.int16) for channel in range(3))
    return red - np.maximum(green, blue) > RED_MARGIN


def _expert_episode(env: TransferCubeEnv, rng: np.random.Generator) -> np.ndarray:
    """(steps, 23) qpos of one expert episode with action noise, from the reset on."""
    physics = demonstrate(env, int(rng.integers(2**31)), observe=lambda env: {_PHYSICS: env.data.qpos[:23].copy()})
    return physics.arrays[_PHYSICS]


def _some_step(episode: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A step of the episode: one half from before the grasp, where a policy has to see the cube, the rest from all."""
    last = len(episode) if rng.random() < 0.5 else round(GRASP_SHARE * len(episode))
    return episode[rng.integers(last)].copy()


def _teleported(qpos: np.ndarray, cube: np.ndarray, rng: np.random.Generator, joint_noise: float) -> np.ndarray:
    qpos = qpos.copy()
    qpos[_ARM_QPOS] += rng.normal(0.0, joint_noise, len(_ARM_QPOS))
    qpos[_CUBE_QPOS] = cube
    return qpos


def _on_table(rng: np.random.Generator) -> np.ndarray:
    (x0, x1), (y0, y1) = scene.CUBE_X_RANGE, scene.CUBE_Y_RANGE
    x = rng.uniform(x0 - SPAWN_MARGIN, x1 + SPAWN_MARGIN)
    y = rng.uniform(y0 - SPAWN_MARGIN, y1 + SPAWN_MARGIN)
    # An episode's first frames show the cube falling from its start height, unturned.
    z = RESTING_Z if rng.random() < 0.8 else rng.uniform(RESTING_Z, scene.CUBE_START_Z)
    yaw = 0.0 if rng.random() < 0.5 else rng.uniform(-np.pi / 4, np.pi / 4)
    return np.array([x, y, z, np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2)])


def _in_air(rng: np.random.Generator) -> np.ndarray:
    quaternion = rng.standard_normal(4)
    return np.concatenate([rng.uniform(FLOATING_LOW, FLOATING_HIGH), quaternion / np.linalg.norm(quaternion)])


def _render(env: TransferCubeEnv, folder: Path, blocks: int, seed: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    count, views = blocks * BLOCK, len(env.cameras)
    shape = (count, views, IMAGE_SIZE, IMAGE_SIZE, 3)
    images = np.lib.format.open_memmap(folder / "images.npy", mode="w+", dtype=np.uint8, shape=shape)
    cube, agent_pos = np.zeros((count, 3), np.float32), np.zeros((count, len(scene.STATE_NAMES)), np.float32)
    kind, red = np.zeros(count, np.uint8), np.zeros((count, views), np.int32)
    with Progress.start(f"render {count} scenes", count) as progress:
        for row, qpos, kind[row] in _scenes(env, blocks, seed):
            mujoco.mj_resetData(env.model, env.data)
            env.data.qpos[:23] = qpos
            mujoco.mj_forward(env.model, env.data)
            frames = env.render_cameras(env.cameras)
            for view, camera in enumerate(env.cameras):
                images[row, view] = resize_frame(frames[camera], (IMAGE_SIZE, IMAGE_SIZE))
                red[row, view] = cube_mask(images[row, view]).sum()
            cube[row], agent_pos[row] = env.cube_pose()[:3], env.joint_positions()
            progress.update(row + 1)
    images.flush()
    np.savez(folder / "labels.npz", cube=cube, agent_pos=agent_pos, kind=kind, red=red)


def _scenes(env: TransferCubeEnv, blocks: int, seed: int) -> Iterator[tuple[int, np.ndarray, int]]:
    for block in range(blocks):
        for offset, (qpos, kind) in enumerate(zip(*sample_block(env, seed, block), strict=True)):
            yield block * BLOCK + offset, qpos, kind


def _recipe(env: TransferCubeEnv, blocks: int, seed: int) -> dict[str, Any]:
    """What the renders depend on, the cameras' poses included: a moved camera must not meet old renders."""
    cameras = []
    for name in env.cameras:
        try:
            camera = env.model.camera(name)
        except KeyError as error:
            raise ConfigError(f"The scene has no camera {name!r}: choose among the cameras of the task.") from error
        pose = {"pos": camera.pos.tolist(), "quat": camera.quat.tolist(), "fovy": float(camera.fovy[0])}
        cameras.append({"name": name, **pose})
    vis = env.model.vis.global_
    frame = [int(vis.offheight), int(vis.offwidth)]
    recipe = {"version": _RECIPE_VERSION, "blocks": blocks, "seed": seed, "cameras": cameras, "frame": frame}
    return json.loads(canonical_json(recipe))
