"""Do the report's statistics keep their promises? Coverage and false positives over simulated campaigns.

    python benchmarks/statistics_coverage.py [--campaigns 10000]

- Wilson: how often the 95 % interval holds the true rate.
- Exact McNemar: how often two equally good arms are called different at 5 %. It is conservative by construction.
- The comparison of settings (two-way, `roboimi/reports/settings.py`): the same, with trainings and start positions that
  vary, each alone and both; and McNemar on one training of each, read as if it spoke of the settings.
"""

import argparse

import numpy as np

from roboimi.reports.settings import crossed_test
from roboimi.reports.statistics import mcnemar_exact, wilson


def wilson_coverage(rates: np.ndarray, episodes: int, rng: np.random.Generator) -> float:
    """Share of campaigns, one a rate, whose interval holds the rate."""
    intervals = [wilson(successes, episodes) for successes in range(episodes + 1)]
    low, high = np.array([(interval.low, interval.high) for interval in intervals])[rng.binomial(episodes, rates)].T
    return float(((low <= rates) & (rates <= high)).mean())


def mcnemar_false_positives(
    rate: float, shared_difficulty: float, episodes: int, campaigns: int, rng: np.random.Generator
) -> float:
    """Share of campaigns that separate two arms of one rate; outcomes on a seed go together as far as it is hard."""
    wrong, memo = 0, {}
    for _ in range(campaigns):
        chance = np.clip(rate + shared_difficulty * rng.normal(size=episodes), 0, 1)
        first, second = rng.uniform(size=(2, episodes)) < chance
        counts = int((first & ~second).sum()), int((second & ~first).sum())
        if counts not in memo:
            memo[counts] = mcnemar_exact(*counts) < 0.05
        wrong += memo[counts]
    return wrong / campaigns


def settings_false_positives(
    trainings: int,
    seeds: int,
    between_trainings: float,
    between_starts: float,
    campaigns: int,
    rng: np.random.Generator,
) -> tuple[float, float]:
    """Share of campaigns that separate two equal settings: by their trainings, and by McNemar on one of each."""
    wrong = naive = 0
    for _ in range(campaigns):
        hard = rng.normal(0, 1, seeds)
        groups = []
        for _ in range(2):
            taste = rng.normal(0, between_starts, seeds)
            skill = rng.normal(0, between_trainings, (trainings, 1))
            groups.append((rng.normal(size=(trainings, seeds)) < 0.8 + skill + taste + hard).astype(float))
        wrong += crossed_test(*groups)[3] < 0.05
        first, second = groups[0][0] > 0, groups[1][0] > 0
        naive += mcnemar_exact(int((first & ~second).sum()), int((second & ~first).sum())) < 0.05
    return wrong / campaigns, naive / campaigns


def main() -> None:
    """Simulate and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--campaigns", type=int, default=10_000)
    campaigns = parser.parse_args().campaigns
    rng = np.random.default_rng(0)
    print("Wilson 95 %: coverage in %")
    for episodes in (50, 200):
        rates = (0.05, 0.2, 0.5, 0.8, 0.9, 0.98)
        cells = [f"{rate}: {100 * wilson_coverage(np.full(campaigns, rate), episodes, rng):.1f}" for rate in rates]
        # Over all rates, which is what a reader of many reports meets.
        uniform = 100 * wilson_coverage(rng.uniform(0, 1, campaigns), episodes, rng)
        print(f"  {episodes} episodes  {'  '.join(cells)}  any rate: {uniform:.1f}")
    print("exact McNemar at 5 %: false positives in %")
    for episodes in (50, 200):
        for rate, hard in ((0.5, 0.0), (0.8, 0.0), (0.8, 0.3), (0.95, 0.0)):
            share = mcnemar_false_positives(rate, hard, episodes, campaigns, rng)
            print(f"  {episodes} seeds, rate {rate}, shared difficulty {hard}: {100 * share:.1f}")
    print("settings at 5 %: false positives in %, by trainings / by McNemar on one checkpoint of each")
    for trainings, seeds in ((3, 200), (3, 50), (5, 200)):
        for between_trainings, between_starts in ((0.0, 0.0), (0.3, 0.0), (0.0, 0.7), (0.3, 0.7)):
            ours, naive = settings_false_positives(trainings, seeds, between_trainings, between_starts, campaigns, rng)
            print(
                f"  {trainings} trainings, {seeds} seeds, spread of trainings {between_trainings}, of start positions "
                f"{between_starts}: {100 * ours:.1f} / {100 * naive:.1f}"
            )


if __name__ == "__main__":
    main()
