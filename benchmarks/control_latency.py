"""From an observation to a chunk: `python benchmarks/control_latency.py`.

One observation of 2 steps x 3 views, as on a robot. At 25 Hz, 8 executed actions last 320 ms: a policy keeps up when
its chunk comes sooner. Random weights, which the time does not depend on.
"""

import argparse
import statistics

import torch
from side_by_side import side_by_side
from synthetic import agent, base_tower, batch

DEADLINE_MS = 320
TOWERS = ("standin", "base")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--tower-rounds", type=int, default=20)
    parser.add_argument("--steps", nargs="+", type=int, default=[1, 2, 4, 10], help="network evaluations of a chunk")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    print(f"device {options.device}, {options.threads} threads; p50 / p99 in ms\n")
    towers = {name: tower_times(name, options) for name in TOWERS}
    for name, times in towers.items():
        print(f"{name} tower, 6 images: {spread(times)}")
    print("\n| head | NFE | head, p50 / p99 | with the stand-in tower, p99 | with the base tower, p99 | of 320 ms |")
    print("|---|---|---|---|---|---|")
    for head in ("small", "base"):
        for steps, times in head_times(head, options).items():
            sums = {name: p99(times) + p99(tower) for name, tower in towers.items()}
            verdict = "keeps up" if sums["base"] < DEADLINE_MS else f"{sums['base'] / DEADLINE_MS:.1f} x too slow"
            print(
                f"| {head} | {steps} | {spread(times)} | {sums['standin']:.0f} ms | {sums['base']:.0f} ms | {verdict} |"
            )


def tower_times(name: str, options: argparse.Namespace) -> list[float]:
    """Milliseconds to encode the six images of one observation."""
    from roboimi.vla.models.encoder import load_vision_model

    tower = base_tower() if name == "base" else load_vision_model("standin")
    policy = agent(["head=small"], tower=tower).to(options.device).eval()
    images = batch("images", 1)["images"].to(options.device)

    def encode() -> None:
        policy.vision_backbone.encode_images(images).float().cpu()

    return side_by_side({"encode": encode}, options.tower_rounds)["encode"]


def head_times(head: str, options: argparse.Namespace) -> dict[int, list[float]]:
    """Milliseconds from features to a chunk in raw units, by network evaluations."""
    policy = agent([f"head={head}"]).to(options.device).eval()
    content = {name: tensor.to(options.device) for name, tensor in batch("features", 1).items()}

    def predict(steps: int) -> None:
        policy.predict_action_chunk(content, num_inference_steps=steps).cpu()

    return side_by_side({steps: lambda steps=steps: predict(steps) for steps in options.steps}, options.rounds)


def p99(times: list[float]) -> float:
    """The 99th percentile."""
    return statistics.quantiles(times, n=100, method="inclusive")[98]


def spread(times: list[float]) -> str:
    """Median and 99th percentile."""
    return f"{statistics.median(times):.1f} / {p99(times):.1f}"


if __name__ == "__main__":
    main()
