"""What it saves to encode every image once: `python benchmarks/encode_once.py`.

One whole update with cached features against the same update that encodes its batch first, as training does where the
frozen tower sits inside the policy: 64 windows x 2 observation steps x 3 views = 384 images a step. The tower has
SigLIP2's base size (93 M parameters; random weights, which its speed does not depend on).
"""

import argparse

import torch
from side_by_side import median, side_by_side
from synthetic import BATCH, TO, V, agent, base_tower, batch, trainer

from roboimi.vla.cpu_matmul import fast_float32_products

STEPS = 50_000


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--heads", nargs="+", default=["small", "base"])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], help="of the tower")
    parser.add_argument("--rounds", type=int, default=5, help="of the updates with cached features")
    parser.add_argument("--encoding-rounds", type=int, default=1, help="of the updates that encode")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dataset-images", type=int, default=32_622, help="frames x views of 100 demonstrations")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    images = BATCH * TO * V
    print(f"device {options.device}, {options.threads} threads, {images} images a step")
    with fast_float32_products():
        cached = {head: cached_step(head, options) for head in options.heads}
        encoding = {dtype: encoding_pass(dtype, options) for dtype in options.dtypes}
        head = options.heads[0]
        dtype = min(encoding, key=encoding.get)
        whole = whole_step(head, dtype, options)
    print("\n| tower | head | encode, ms an image | step, cached | step, encoding | ratio | 2 x 50,000 steps |")
    print("|---|---|---|---|---|---|---|")
    for dtype, milliseconds in encoding.items():
        for name, step in cached.items():
            slow = step + milliseconds
            once = (options.dataset_images * milliseconds / images + 2 * STEPS * step) / 3.6e6
            print(
                f"| {dtype} | {name} | {milliseconds / images:.1f} | {step:.0f} ms | {slow:.0f} ms | {slow / step:.0f} "
                f"| {once:.1f} h, encoding once included; {2 * STEPS * slow / 3.6e6:.0f} h |"
            )
    expected = cached[head] + encoding[dtype]
    print(f"\nencoding steps above are sums; one measured whole ({head} head, {dtype} tower): {whole:.0f} ms, ")
    print(f"{whole / expected:.3f} of its sum")


def cached_step(head: str, options: argparse.Namespace) -> float:
    """Milliseconds of an update whose batch holds features."""
    made = trainer(agent([f"head={head}"]).to(options.device), batch("features"))
    return median(side_by_side({"step": made.advance}, options.rounds)["step"])


def encoding_pass(dtype: str, options: argparse.Namespace) -> float:
    """Milliseconds to encode the images of one step."""
    tower = base_tower(getattr(torch, dtype))
    policy = agent(["head=small"], tower=tower).to(options.device)
    images = batch("images")["images"].to(options.device)

    def encode() -> None:
        policy.vision_backbone.encode_images(images).float().cpu()

    return median(side_by_side({"encode": encode}, options.encoding_rounds, warmup=0)["encode"])


def whole_step(head: str, dtype: str, options: argparse.Namespace) -> float:
    """Milliseconds of an update whose batch holds images."""
    policy = agent([f"head={head}"], tower=base_tower(getattr(torch, dtype))).to(options.device)
    made = trainer(policy, batch("images"))
    return median(side_by_side({"step": made.advance}, options.encoding_rounds, warmup=0)["step"])


if __name__ == "__main__":
    main()
