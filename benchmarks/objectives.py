"""Success of each objective by network evaluations, at equal training: `python benchmarks/objectives.py`.

The control arm (the condition holds the cube's pose), one dataset, one head, one number of updates; several training
seeds; the same rollout seeds for all. Trainings and rollouts are adopted from the store when they are there, so a run
that was stopped goes on, and several processes may share the work with --objectives and --training-seeds.
"""

import argparse
import statistics

from scipy.stats import binomtest

from roboimi.storage.store import Store, open_store
from roboimi.vla.config import EvalConfig, TrainRun
from roboimi.vla.eval_vla import evaluate
from roboimi.vla.rollouts.eval_run import EvalResult, EvalRun
from roboimi.vla.train_vla import train

EVALUATIONS = {"imf": (1, 2, 4, 10), "meanflow": (1, 2, 4, 10), "flow": (1, 2, 4, 10), "regression": (1,), "mip": (2,)}
"""Network evaluations of a chunk that are tried; regression has one and mip two, whatever is asked."""


def main() -> None:
    """Train and roll out what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="datasets/transfer_cube")
    parser.add_argument("--store", default="outputs/objectives")
    parser.add_argument("--objectives", nargs="+", default=list(EVALUATIONS), choices=list(EVALUATIONS))
    parser.add_argument("--training-seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--first-seed", type=int, default=100_000)
    parser.add_argument("--overrides", nargs="*", default=["head=small", "train=local"], help="of every training")
    options = parser.parse_args()

    store = open_store(options.store)
    settings = EvalConfig(episodes=options.episodes, first_seed=options.first_seed)
    print("| objective | NFE | success, all training seeds | Wilson 95 % | by training seed | training |")
    print("|---|---|---|---|---|---|")
    for objective in options.objectives:
        trained = [
            train_control(store, objective, seed, options.overrides, options.dataset) for seed in options.training_seeds
        ]
        seconds = statistics.mean(result.seconds for result in trained)
        for evaluations in EVALUATIONS[objective]:
            results = [roll_out(store, result.checkpoint, settings, evaluations) for result in trained]
            print(row(objective, evaluations, results, seconds), flush=True)


def train_control(store: Store, objective: str, seed: int, overrides: list[str], dataset: str):
    """Train the control arm, or adopt its training."""
    arm = [*overrides, "backbone=privileged_state", f"objective={objective}", f"train.seed={seed}"]
    arm += ["train.rollout_every=0", "train.threads=1", "train.tracking=disabled"]
    return train(TrainRun.from_overrides(arm, dataset=dataset, encoder="standin"), store=store)


def roll_out(store: Store, checkpoint: str, settings: EvalConfig, evaluations: int) -> EvalResult:
    """Roll a checkpoint out with so many network evaluations a chunk."""
    settings = EvalConfig(settings.episodes, settings.first_seed, num_inference_steps=evaluations)
    return evaluate(EvalRun.from_store(store, checkpoint, settings, filmstrips=False), store=store)


def row(objective: str, evaluations: int, results: list[EvalResult], seconds: float) -> str:
    """One line of the table.

    The interval takes the episodes of all training seeds for independent, so it is of these policies, not of the
    objective: the spread between training seeds stands beside it.
    """
    successes, episodes = sum(result.successes for result in results), sum(result.episodes for result in results)
    interval = binomtest(successes, episodes).proportion_ci(method="wilson")
    by_seed = ", ".join(f"{100 * result.successes / result.episodes:.1f}" for result in results)
    return (
        f"| {objective} | {evaluations} | {successes} of {episodes} ({100 * successes / episodes:.1f} %) "
        f"| {100 * interval.low:.1f}–{100 * interval.high:.1f} % | {by_seed} | {seconds:.0f} s |"
    )


if __name__ == "__main__":
    main()
