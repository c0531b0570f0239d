"""How often the scripted expert succeeds: `python benchmarks/expert_success.py --episodes 200`.

Success is the strict one: the left gripper holds the cube in the air for 0.2 s and the right one has let go.
"""

import argparse
import time

import numpy as np
from scipy.stats import binomtest

from roboimi.envs.demonstration import Demonstration, demonstrate
from roboimi.envs.transfer_cube import MAX_STAGE, TransferCubeEnv


def main() -> None:
    """Run the episodes and print the success rate with its Wilson interval."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--control-hz", type=int, default=25)
    parser.add_argument("--duration-scale", type=float, default=0.7)
    parser.add_argument("--noise-std", type=float, default=0.01, help="rad")
    options = parser.parse_args()

    env = TransferCubeEnv(control_hz=options.control_hz, require_release=True)
    seeds = range(options.first_seed, options.first_seed + options.episodes)
    started = time.perf_counter()
    episodes = [
        demonstrate(env, seed, duration_scale=options.duration_scale, noise_std=options.noise_std) for seed in seeds
    ]
    print_summary(episodes, options.control_hz, time.perf_counter() - started)


def print_summary(episodes: list[Demonstration], control_hz: int, seconds: float) -> None:
    """Print the counts, the lengths and the largest step of a target."""
    count = len(episodes)
    for name, successes in (
        ("success (held 0.2 s, right released)", sum(episode.success for episode in episodes)),
        (f"reward {MAX_STAGE} reached", sum(episode.stage == MAX_STAGE for episode in episodes)),
    ):
        interval = binomtest(successes, count).proportion_ci(method="wilson")
        print(f"{name}: {successes}/{count}, Wilson 95 % [{100 * interval.low:.1f}, {100 * interval.high:.1f}] %")
    lengths = np.array([len(episode.executed) for episode in episodes]) / control_hz
    print(f"length: mean {lengths.mean():.2f} s, longest {lengths.max():.2f} s of task time")
    joints = [index for index in range(14) if index not in (6, 13)]
    largest = max(np.abs(np.diff(episode.arrays["action"][:, joints], axis=0)).max() for episode in episodes)
    print(f"largest step of a joint target: {largest:.3f} rad at {control_hz} Hz")
    print(f"cost: {seconds / count:.3f} s per episode, nothing rendered")
    failed = [episode.seed for episode in episodes if not episode.success]
    print(f"failed seeds: {failed if failed else 'none'}")


if __name__ == "__main__":
    main()
