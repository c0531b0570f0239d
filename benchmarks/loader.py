"""How fast windows of cached features come, and what they take on disk and in memory: `python benchmarks/loader.py`.

Two datasets of random content, one ten times the size of the other, with features of SigLIP2's width. Each is read in a
process of its own for as many batches as a short training reads; memory is what that process holds for itself
(RssAnon), not the pages of the features that the kernel keeps and can give back.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from synthetic import TO, A, E, S, T, V

from roboimi.storage.store import open_store
from roboimi.vla.data.contract import DatasetContract
from roboimi.vla.data.episode import write_episode
from roboimi.vla.data.feature_cache import (
    COMMIT_NAME,
    DTYPE,
    SCHEMA,
    cache_prefix,
    open_feature_cache,
    store_episode,
)
from roboimi.vla.data.loader import WindowLoader
from roboimi.vla.data.manifest import resolve_dataset, split_episodes, write_manifest
from roboimi.vla.data.sampler import WindowSampler
from roboimi.vla.data.simple_robot_dataset import SimpleRobotDataset

FRAMES, WIDTH, ENCODER = 109, 768, "0" * 64
"""Frames of an episode, width of a feature, and the digest that the features are stored under."""


def main() -> None:
    """Make the datasets, read each in its own process, print what was seen."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--batches", type=int, default=2000)
    parser.add_argument("--read", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.read:
        read(Path(options.read), options.batches)
        return
    with tempfile.TemporaryDirectory(dir=".") as folder:
        for episodes in (options.episodes, 10 * options.episodes):
            root = Path(folder) / str(episodes)
            make(root, episodes)
            command = [sys.executable, __file__, "--read", str(root), "--batches", str(options.batches)]
            subprocess.run(command, check=True)


def make(root: Path, episodes: int) -> None:
    """Write `root/dataset` and the features of `root/store`."""
    contract = DatasetContract(
        state_dim=S,
        action_dim=A,
        environment_state_dim=E,
        cameras=("a", "b", "c"),
        image_height=8,
        image_width=8,
        fps=25,
    )
    generator = np.random.default_rng(0)
    (root / "dataset").mkdir(parents=True)
    files = [f"episode_{number:06d}.hdf5" for number in range(episodes)]
    for file in files:
        arrays = {
            "action": generator.normal(size=(FRAMES, A)).astype(np.float32),
            "observations/qpos": generator.normal(size=(FRAMES, S)).astype(np.float32),
            "observations/qvel": np.zeros((FRAMES, S), np.float32),
            "observations/environment_state": generator.normal(size=(FRAMES, E)).astype(np.float32),
            "observations/timestamp": np.arange(FRAMES) / 25,
        }
        arrays |= {f"observations/images/{name}": np.zeros((FRAMES, 8, 8, 3), np.uint8) for name in contract.cameras}
        write_episode(root / "dataset" / file, arrays, contract, {"sim": True})
    write_manifest(root / "dataset", contract=contract, source={"kind": "random"}, split=split_episodes(files))
    ref, store = resolve_dataset(root / "dataset"), open_store(root / "store")
    prefix = cache_prefix(ref.digest, ENCODER)
    features = generator.normal(size=(FRAMES, V, WIDTH)).astype(np.float32)
    stored = [store_episode(store.folder(prefix), entry, features) for entry in ref.manifest.episodes]
    document = {
        "schema": SCHEMA,
        "dataset_digest": ref.digest,
        "encoder": {"digest": ENCODER, "name": "random", "description": "random features", "is_standin": True},
        "dtype": DTYPE.name,
        "num_views": V,
        "feature_dim": WIDTH,
        "cameras": list(contract.cameras),
        "frames": FRAMES * episodes,
        "episodes": [item.to_dict() for item in stored],
    }
    store.publish(prefix, COMMIT_NAME, document)


def read(root: Path, batches: int) -> None:
    """Read batches as a training does and print speed, size and memory."""
    ref, store = resolve_dataset(root / "dataset"), open_store(root / "store")
    cache = open_feature_cache(store, ref.digest, ENCODER)
    before = anonymous_megabytes()
    dataset = SimpleRobotDataset(ref, "train", obs_horizon=TO, pred_horizon=T, vision="features", features=cache)
    loader = WindowLoader(dataset)
    sampler = WindowSampler(len(loader), 64, seed=0)
    loader.batch(sampler.batch_indices(0))
    started = time.perf_counter()
    for step in range(batches):
        loader.batch(sampler.batch_indices(step))
    seconds = time.perf_counter() - started
    raw = 2 * V * WIDTH * sum(entry.frames for entry in ref.manifest.episodes)
    disk = sum(path.stat().st_size for path in store.folder(cache_prefix(ref.digest, ENCODER)).iterdir())
    print(
        f"{len(ref.manifest.episodes)} episodes, {len(loader)} windows: {64 * batches / seconds:,.0f} windows/s; "
        f"cache {disk / 1e6:.1f} MB, {disk / raw:.3f} x its float16 values; memory of the loader "
        f"{anonymous_megabytes() - before:.1f} MB"
    )


def anonymous_megabytes() -> float:
    """What this process holds for itself."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1e3 for line in lines if line.startswith("RssAnon"))


if __name__ == "__main__":
    main()
