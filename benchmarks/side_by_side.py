"""Times several computations in turn, round by round: a drift of the machine's speed meets all of them alike."""

import statistics
import time
from collections.abc import Callable, Mapping


def side_by_side(
    candidates: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 2
) -> dict[str, list[float]]:
    """Run each candidate once a round.

    Args:
        candidates: by name; what they return is ignored.
        rounds: measurements of each.
        warmup: rounds before the first that counts.

    Returns:
        Milliseconds of each call, by name.
    """
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(-warmup, rounds):
        for name, run in candidates.items():
            started = time.perf_counter()
            run()
            if number >= 0:
                times[name].append(1e3 * (time.perf_counter() - started))
    return times


def ratio(above: list[float], below: list[float]) -> str:
    """Median of the ratios round by round, with their quartiles."""
    ratios = [a / b for a, b in zip(above, below, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return f"{middle:.2f} ({low:.2f}–{high:.2f})"


def median(times: list[float]) -> float:
    """The median, in the unit of `times`."""
    return statistics.median(times)
