"""One trained policy under several execution lengths and inference steps: nothing is trained again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from roboimi.errors import ConfigError
from roboimi.vla.config import EvalConfig
from roboimi.vla.rollouts.eval_run import EvalResult, EvalRun

SWEPT = ("num_action_steps", "num_inference_steps")
COLUMNS = ("Ta", "NFE", "success", "95 % Wilson", "unknown", "steps", "chunk ms", "control ms")


def combinations(values: Mapping[str, Any]) -> list[EvalConfig]:
    """Settings of an evaluation for every combination of the settings that are lists.

    Args:
        values: fields of `EvalConfig`; those of `SWEPT` may be lists.

    Raises:
        ConfigError: an empty list, or a list where there is nothing to sweep.
    """
    lists = {name: value if isinstance(value, list) else [value] for name, value in values.items()}
    for name, value in values.items():
        if isinstance(value, list) and (name not in SWEPT or not value):
            raise ConfigError(
                f"eval.{name}={value} cannot be swept: give a list with values for {' or '.join(SWEPT)}, and one value "
                "for everything else."
            )
    try:
        return [EvalConfig(**dict(zip(lists, chosen, strict=True))) for chosen in product(*lists.values())]
    except TypeError as error:
        raise ConfigError(f"The settings of 'eval' do not fit: {error}.") from error


def sweep_table(runs: Sequence[EvalRun], results: Sequence[EvalResult]) -> str:
    """The results as a plain table, one row a combination, in their order."""
    from roboimi.reports.statistics import wilson

    rows = [COLUMNS]
    for run, result in zip(runs, results, strict=True):
        interval = wilson(result.successes, result.episodes)
        rows.append(
            (
                str(run.settings.num_action_steps),
                str(run.settings.num_inference_steps),
                f"{result.successes} of {result.episodes}",
                f"{100 * interval.low:.0f} to {100 * interval.high:.0f}",
                str(result.unknown),
                f"{result.mean_steps:.0f}",
                f"{result.latency_ms:.1f}",
                f"{result.control_ms:.1f}",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(lines)
