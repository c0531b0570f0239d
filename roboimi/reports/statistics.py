"""What rollout counts can and cannot say: intervals, paired tests, and how many episodes a claim needs.

Every arm of a campaign is rolled out on the same seeds, so two arms are compared seed by seed (McNemar), never as two
independent proportions: a hard start position is hard for both. The test is exact, and the power figures are those of
this same exact test, not of a normal approximation to another one.

Sources: E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927);
Q. McNemar, "Note on the sampling error of the difference between correlated proportions", Psychometrika 12 (1947);
S. Holm, "A simple sequentially rejective multiple test procedure", Scand. J. Statist. 6 (1979).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binom, binomtest

from roboimi.errors import ConfigError

ALPHA = 0.05
POWER = 0.80
MOST_EPISODES = 20_000  # where `episodes_needed` gives up


@dataclass(frozen=True)
class Proportion:
    """`successes` of `episodes`, with the 95 % Wilson interval [`low`, `high`] (both in [0, 1])."""

    successes: int
    episodes: int
    low: float
    high: float

    @property
    def rate(self) -> float:
        """Observed success rate in [0, 1]; nan when nothing was observed."""
        return self.successes / self.episodes if self.episodes else float("nan")


@dataclass(frozen=True)
class PairedComparison:
    """Two arms on the seeds both finished with a known outcome.

    `only_first` counts the seeds that the first arm alone solved, `only_second` the reverse; seeds on which both agree
    carry no evidence. `p_value` is the exact two-sided McNemar test, `p_holm` the same after Holm's correction over the
    family of pairs it was tested in.
    """

    first: str
    second: str
    shared: int
    both: int
    only_first: int
    only_second: int
    p_value: float
    p_holm: float

    @property
    def difference(self) -> float:
        """Success rate of the first arm minus the second's, on the shared seeds; nan without any."""
        return (self.only_first - self.only_second) / self.shared if self.shared else float("nan")

    @property
    def separated(self) -> bool:
        """Whether the evidence separates the two arms at the 5 % level, after Holm's correction."""
        return self.p_holm < ALPHA

    @property
    def better(self) -> str | None:
        """The better arm where the evidence separates them, else None."""
        if not self.separated:
            return None
        return self.first if self.only_first > self.only_second else self.second


def wilson(successes: int, episodes: int, confidence: float = 0.95) -> Proportion:
    """Wilson score interval of a success count; [0, 1] when `episodes` is 0.

    Raises:
        ConfigError: counts that cannot be (negative, or more successes than episodes).
    """
    if not 0 <= successes <= episodes:
        raise ConfigError(f"{successes} successes of {episodes} episodes is impossible: check the episode counts.")
    if episodes == 0:
        return Proportion(0, 0, 0.0, 1.0)
    interval = binomtest(successes, episodes).proportion_ci(confidence, method="wilson")
    return Proportion(successes, episodes, float(interval.low), float(interval.high))


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Exact two-sided McNemar p-value from the two discordant counts; 1.0 when no seed tells the arms apart."""
    discordant = only_first + only_second
    return 1.0 if discordant == 0 else float(binomtest(only_first, discordant, 0.5).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the order given."""
    order = np.argsort(p_values, kind="stable")
    adjusted = np.empty(len(p_values))
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return [float(value) for value in adjusted]


def compare_pairs(
    outcomes: Mapping[str, Mapping[int, bool]], pairs: Iterable[tuple[str, str]]
) -> list[PairedComparison]:
    """McNemar over the shared seeds of each pair, Holm-corrected over all the pairs given.

    Args:
        outcomes: arm -> seed -> success. Seeds whose outcome is unknown must be left out; they are then in no pair.
        pairs: the family of pairs to test, as (first arm, second arm).
    """
    counted = [(first, second, _agreement(outcomes[first], outcomes[second])) for first, second in pairs]
    raw = [mcnemar_exact(only_first, only_second) for _, _, (_, _, only_first, only_second) in counted]
    return [
        PairedComparison(first, second, *table, p_value=p, p_holm=corrected)
        for (first, second, table), p, corrected in zip(counted, raw, holm(raw), strict=True)
    ]


def mcnemar_power(rate_first: float, rate_second: float, episodes: int, alpha: float = ALPHA) -> float:
    """Probability that the exact McNemar test on `episodes` shared seeds separates two arms with these success rates.

    The arms' outcomes on one seed are taken as independent. Arms trained on the same data tend to fail on the same
    seeds, which leaves fewer discordant seeds at the same difference, so the true power is usually a little higher.
    """
    win, loss = rate_first * (1 - rate_second), rate_second * (1 - rate_first)
    if episodes <= 0 or win + loss <= 0:
        return 0.0
    discordant = np.arange(episodes + 1)
    # Largest count on the losing side that still rejects: 2 P(X <= c) <= alpha under a fair coin; -1 when none does.
    critical = binom.ppf(alpha / 2, discordant, 0.5)
    critical = np.where(2 * binom.cdf(critical, discordant, 0.5) <= alpha, critical, critical - 1)
    share = win / (win + loss)
    rejects = binom.cdf(critical, discordant, share) + binom.sf(discordant - critical - 1, discordant, share)
    return float(np.sum(binom.pmf(discordant, episodes, win + loss) * np.where(critical < 0, 0.0, rejects)))


def detectable_difference(rate: float, episodes: int, power: float = POWER, alpha: float = ALPHA) -> float | None:
    """Smallest true difference around `rate` that this many shared seeds would separate with probability `power`.

    The two arms sit symmetrically around `rate`, shifted inwards where that would leave [0, 1].

    Returns:
        The difference in [0, 1], to one percentage point; None where not even 0 % against 100 % would be separated.
    """
    for points in range(1, 101):
        low, high = _around(rate, points / 100)
        if mcnemar_power(high, low, episodes, alpha) >= power:
            return points / 100
    return None


def episodes_needed(rate: float, difference: float = 0.10, power: float = POWER, alpha: float = ALPHA) -> int:
    """Shared seeds needed to separate two arms `difference` apart around `rate` with probability `power`.

    Raises:
        ConfigError: a difference outside (0, 1], or one that would need more than 20 000 episodes.
    """
    if not 0 < difference <= 1:
        raise ConfigError(f"A difference of {difference} between success rates is outside (0, 1]: give a share.")
    low, high = _around(rate, difference)
    upper = 8
    while mcnemar_power(high, low, upper, alpha) < power:
        upper *= 2
        if upper > MOST_EPISODES:
            raise ConfigError(
                f"Separating a difference of {difference:.2%} needs over {MOST_EPISODES} episodes: ask for more."
            )
    lower = upper // 2
    while upper - lower > 1:
        middle = (lower + upper) // 2
        lower, upper = (lower, middle) if mcnemar_power(high, low, middle, alpha) >= power else (middle, upper)
    return upper


def _agreement(first: Mapping[int, bool], second: Mapping[int, bool]) -> tuple[int, int, int, int]:
    """(shared, both, only_first, only_second) over the seeds known to both."""
    seeds = sorted(first.keys() & second.keys())
    both = sum(first[seed] and second[seed] for seed in seeds)
    only_first = sum(first[seed] and not second[seed] for seed in seeds)
    only_second = sum(second[seed] and not first[seed] for seed in seeds)
    return len(seeds), both, only_first, only_second


def _around(rate: float, difference: float) -> tuple[float, float]:
    low = min(max(rate - difference / 2, 0.0), 1.0 - difference)
    return low, low + difference
