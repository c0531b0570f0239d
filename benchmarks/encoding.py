"""Images a second of the encoding step against the bare forward pass: `python benchmarks/encoding.py DATASET`.

`encode_features` reads, decodes, batches, encodes and writes; the bare pass encodes images that are in memory already,
in batches of the same size. They take turns, a few episodes each.
"""

import argparse
import tempfile

import torch
from side_by_side import median, ratio, side_by_side

from roboimi.storage.store import open_store
from roboimi.vla.cpu_matmul import fast_float32_products
from roboimi.vla.data.manifest import resolve_dataset
from roboimi.vla.data.simple_robot_dataset import SimpleRobotDataset
from roboimi.vla.encode_features import encode_features
from roboimi.vla.models.backbones import SigLIP2DiffusionBackbone
from roboimi.vla.models.encoder import load_vision_model


def main() -> None:
    """Print images a second of both, and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset")
    parser.add_argument("--encoder", default="standin")
    parser.add_argument("--episodes", type=int, default=3, help="of each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    ref = resolve_dataset(options.dataset)
    views, shards = ref.contract.num_views, max(1, len(ref.manifest.episodes) // options.episodes)
    chosen = ref.manifest.episodes[::shards]
    dataset = SimpleRobotDataset(ref, None, obs_horizon=1, pred_horizon=1, vision="images")
    numbers = {entry.file: number for number, entry in enumerate(dataset.entries)}
    images = [torch.from_numpy(dataset.images(numbers[entry.file], range(entry.frames))) for entry in chosen]
    backbone = SigLIP2DiffusionBackbone(num_views=views, vision_model=load_vision_model(options.encoder))
    step = 64 // views

    def bare() -> None:
        with fast_float32_products():
            for episode in images:
                for start in range(0, len(episode), step):
                    backbone.encode_images(episode[start : start + step])

    def whole() -> None:
        with tempfile.TemporaryDirectory() as folder:
            encode_features(open_store(folder), ref, options.encoder, shard=(0, shards))

    times = side_by_side({"bare": bare, "whole": whole}, options.rounds, warmup=1)
    count = views * sum(entry.frames for entry in chosen)
    for name, milliseconds in times.items():
        print(f"{name:6} {1e3 * count / median(milliseconds):8.1f} images/s")
    print(
        f"encode_features runs at {ratio(times['bare'], times['whole'])} of the bare pass ({options.threads} threads)"
    )


if __name__ == "__main__":
    main()
