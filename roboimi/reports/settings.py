"""Settings: what an arm is about, apart from the seed of its training; compared at the level of trainings.

One training is one draw. Its rollouts say how good that checkpoint is, whatever their number; how good the *recipe* is,
only several trainings tell. So where a setting was trained with several seeds, settings are compared with the trainings
as the unit of replication:

    d     mean over A's trainings of their success rates, minus the same for B
    V_t   s²(A's rates) / k_A + s²(B's rates) / k_B           between trainings (Welch)
    V_e   s²(per rollout seed: A's mean minus B's mean) / n    between start positions, which the arms share
    t     d / sqrt(V_t + V_e), degrees of freedom by Satterthwaite

Trainings and rollout seeds are crossed, and each varies for its own reason; V_t alone would take the start positions
for the whole world, V_e alone the trainings. Their sum is the two-way cluster-robust variance without its negative
term, which counts the noise of single episodes twice: the test errs towards "not separable"
(`benchmarks/statistics_coverage.py` says by how much).

Sources: B. L. Welch, Biometrika 34 (1947); F. E. Satterthwaite, Biometrics Bulletin 2 (1946); A. C. Cameron, J. B.
Gelbach and D. L. Miller, "Robust inference with multiway clustering", JBES 29 (2011).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from scipy.stats import t as student

from roboimi.reports.arm_data import CANDIDATE, ArmReport
from roboimi.reports.statistics import ALPHA, POWER, holm

SEED_OVERRIDE = "train.seed"
_SEED_SUFFIX = re.compile(r"[._-]seed-?\d+$")


@dataclass(frozen=True)
class Setting:
    """One recipe and its trainings.

    Attributes:
        name: of the arms, without the ending that says which seed.
        arms: names of its arms that have a result, one a training.
        rates: success rate of each, in their order.
        missing: names of its arms that have none.
        outcomes: rollout seed -> mean success over the trainings, where all of them have a known outcome.
    """

    name: str
    arms: tuple[str, ...]
    rates: tuple[float, ...]
    missing: tuple[str, ...]
    outcomes: Mapping[int, float]

    @property
    def rate(self) -> float:
        """Mean over its trainings; nan without any."""
        return float(np.mean(self.rates)) if self.rates else float("nan")


@dataclass(frozen=True)
class SettingComparison:
    """Two settings; `low` and `high` bound the difference of their rates, first minus second, with 95 % confidence.

    Attributes:
        first: name of a setting.
        second: name of another.
        trainings: how many of each.
        shared: rollout seeds known to all of them.
        difference: of the mean rates, on the shared seeds.
        low: of its interval.
        high: of its interval.
        detectable: smallest difference that such data would separate in 4 of 5 campaigns.
        p_value: two-sided.
        p_holm: after Holm's correction over the family of pairs.
    """

    first: str
    second: str
    trainings: tuple[int, int]
    shared: int
    difference: float
    low: float
    high: float
    detectable: float
    p_value: float
    p_holm: float = 1.0

    @property
    def better(self) -> str | None:
        """The better setting where the evidence separates the two at the 5 % level, else None."""
        if not self.p_holm < ALPHA:
            return None
        return self.first if self.difference > 0 else self.second


def setting_name(arm: str) -> str:
    """An arm's name without the seed of its training: `projection-96.seed-2` -> `projection-96`."""
    return _SEED_SUFFIX.sub("", arm)


def group_settings(arms: Sequence[ArmReport]) -> list[Setting]:
    """The candidates, grouped by name, overrides and configuration apart from the training's seed, in their order.

    Arms of several campaigns, whose names begin with `RUN_ID/`, are of one setting where their whole configuration is.
    """
    groups: dict[tuple[str, ...], list[ArmReport]] = {}
    for arm in arms:
        if arm.role == CANDIDATE:
            groups.setdefault(_recipe(arm), []).append(arm)
    short = [setting_name(group[0].name.rpartition("/")[2]) for group in groups.values()]
    return [
        _setting(group, name if short.count(name) == 1 else setting_name(group[0].name))
        for group, name in zip(groups.values(), short, strict=True)
    ]


def _recipe(arm: ArmReport) -> tuple[str, ...]:
    config = dict(arm.training.get("config") or {})
    config["train"] = {name: value for name, value in (config.get("train") or {}).items() if name != "seed"}
    same = {"config": config, "dataset": arm.training.get("dataset_digest"), "encoder": arm.training.get("encoder")}
    overrides = (item for item in arm.overrides if item.partition("=")[0].lstrip("+") != SEED_OVERRIDE)
    # A training that never began has no configuration; within one campaign, name and overrides tell as much.
    campaign, _, name = arm.name.rpartition("/")
    return (setting_name(name), *overrides, campaign if not campaign else json.dumps(same, sort_keys=True))


def compare_settings(settings: Sequence[Setting], arms: Mapping[str, ArmReport]) -> list[SettingComparison]:
    """Every pair of settings of which each was trained at least twice, Holm-corrected over them; the best first."""
    several = sorted((item for item in settings if len(item.rates) > 1), key=lambda item: -item.rate)
    pairs = [
        _compare(first, second, _matrix(first, second, arms), _matrix(second, first, arms))
        for first, second in combinations(several, 2)
        if _shared(first, second)
    ]
    return [
        replace(pair, p_holm=corrected)
        for pair, corrected in zip(pairs, holm([pair.p_value for pair in pairs]), strict=True)
    ]


def crossed_test(first: np.ndarray, second: np.ndarray) -> tuple[float, float, float, float]:
    """Difference of two settings whose trainings met the same rollout seeds.

    Args:
        first: (k_A, n) successes, 0 or 1, k_A >= 2.
        second: (k_B, n) likewise.

    Returns:
        Difference of the means, its standard error, degrees of freedom, two-sided p-value; p is 1 where nothing varies.
    """
    difference = float(first.mean() - second.mean())
    between = [group.mean(axis=1).var(ddof=1) / len(group) for group in (first, second)]
    seeds = (first.mean(axis=0) - second.mean(axis=0)).var(ddof=1) / first.shape[1] if first.shape[1] > 1 else 0.0
    parts = [(between[0], len(first) - 1), (between[1], len(second) - 1), (seeds, first.shape[1] - 1)]
    variance = sum(part for part, _ in parts)
    if variance <= 0:
        return difference, 0.0, float("inf"), 1.0
    freedom = variance**2 / sum(part**2 / degrees for part, degrees in parts if part > 0)
    error = float(np.sqrt(variance))
    return difference, error, float(freedom), float(2 * student.sf(abs(difference) / error, freedom))


def _compare(first: Setting, second: Setting, ours: np.ndarray, theirs: np.ndarray) -> SettingComparison:
    difference, error, freedom, p_value = crossed_test(ours, theirs)
    reach = student.ppf(1 - ALPHA / 2, freedom)
    return SettingComparison(
        first=first.name,
        second=second.name,
        trainings=(len(ours), len(theirs)),
        shared=ours.shape[1],
        difference=difference,
        low=max(-1.0, difference - reach * error),
        high=min(1.0, difference + reach * error),
        detectable=min(1.0, float((reach + student.ppf(POWER, freedom)) * error)),
        p_value=p_value,
    )


def _setting(arms: Sequence[ArmReport], name: str) -> Setting:
    known = [arm for arm in arms if arm.success is not None and arm.success.episodes]
    seeds = set.intersection(*(set(arm.outcomes) for arm in known)) if known else set()
    return Setting(
        name=name,
        arms=tuple(arm.name for arm in known),
        rates=tuple(arm.success.rate for arm in known),
        missing=tuple(arm.name for arm in arms if arm not in known),
        outcomes={seed: float(np.mean([arm.outcomes[seed] for arm in known])) for seed in sorted(seeds)},
    )


def _shared(first: Setting, second: Setting) -> list[int]:
    return sorted(first.outcomes.keys() & second.outcomes.keys())


def _matrix(setting: Setting, other: Setting, arms: Mapping[str, ArmReport]) -> np.ndarray:
    """(k, n) successes of a setting's trainings on the seeds that both settings know."""
    seeds = _shared(setting, other)
    return np.array([[arms[name].outcomes[seed] for seed in seeds] for name in setting.arms], dtype=np.float64)
