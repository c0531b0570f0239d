"""The files of one evaluation, written so that a kill loses at most the episodes that were running.

```
rollouts/<key>/
    episodes.jsonl              one line an episode, in the order in which they ended
    actions.f32                 what each episode executed, (steps, A) little-endian float32 from its line's
                                `actions_offset` on (bytes): enough to see the episode again
    filmstrip_success.webp      one success and one failure, where there are any
    filmstrip_failure.webp
    RESULT.json                 the summary; written last: the commit
```
"""

from __future__ import annotations

import fcntl
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from roboimi.errors import DataError, HeldByAnotherError
from roboimi.storage.atomic import atomic_path
from roboimi.vla.rollouts.outcomes import FAILURE, SUCCESS, UNKNOWN, EpisodeOutcome

EPISODES = "episodes.jsonl"
ACTIONS = "actions.f32"


class EpisodeLog:
    """`episodes.jsonl`, open for appending by one process at a time.

    Args:
        folder: of the evaluation.
        seeds: of the evaluation; lines of others are dropped, as are those whose outcome is unknown: these run again.

    Raises:
        HeldByAnotherError: another process is writing the same evaluation.
    """

    def __init__(self, folder: Path, seeds: Sequence[int]):
        self._lock = os.open(folder, os.O_RDONLY)  # the folder itself: no lock file among the results
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise HeldByAnotherError(
                f"Another process is running the rollouts of {folder}: wait for it, or stop it, and run again."
            ) from error
        wanted = set(seeds)
        kept = [line for line in read_episodes(folder) if line["seed"] in wanted and line["outcome"] != UNKNOWN]
        self.lines: dict[int, dict[str, Any]] = {line["seed"]: line for line in kept}
        with atomic_path(folder / EPISODES) as temporary:
            temporary.write_text("".join(_as_line(line) for line in self.lines.values()))
        self._file = open(folder / EPISODES, "a", buffering=1)  # noqa: SIM115 (lives as long as the log)
        self._actions = open(folder / ACTIONS, "ab")  # noqa: SIM115

    def write(self, outcome: EpisodeOutcome, **fields: Any) -> None:
        """Add one episode. Its actions go first, so that every line has them."""
        line = {**episode_fields(outcome), **fields, "actions_offset": self._actions.tell()}
        self._actions.write(np.ascontiguousarray(outcome.actions, dtype="<f4").tobytes())
        self._actions.flush()
        self._file.write(_as_line(line))
        self.lines[outcome.seed] = line

    def close(self) -> None:
        """Close the files and let others write."""
        self._file.close()
        self._actions.close()
        os.close(self._lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def episode_fields(outcome: EpisodeOutcome) -> dict[str, Any]:
    """An outcome as the plain dict of its line."""
    return {
        "seed": outcome.seed,
        "outcome": outcome.outcome,
        "stage": outcome.stage,
        "steps": outcome.steps,
        "action_dim": outcome.actions.shape[1],
        "chunks": outcome.chunks,
        "latency_ms": round(outcome.latency_ms, 3),
        "frame_size": list(outcome.frame_size) if outcome.frame_size else None,
        "reason": outcome.reason,
    }


def read_episodes(folder: Path) -> list[dict[str, Any]]:
    """All whole lines of `episodes.jsonl`, in order; none where there is no file.

    A last line without its end was cut off by a kill, and is left out.

    Raises:
        DataError: a whole line is no episode, which no kill can cause.
    """
    path = folder / EPISODES
    if not path.exists():
        return []
    whole, _, _ = path.read_text().rpartition("\n")
    try:
        lines = [json.loads(line) for line in whole.splitlines()]
    except ValueError as error:
        raise _damaged(path, str(error)) from error
    for number, line in enumerate(lines, start=1):
        if not isinstance(line, dict) or not {"seed", "outcome", "steps", "actions_offset"} <= line.keys():
            raise _damaged(path, f"line {number} is no episode")
    return lines


def read_actions(folder: Path, line: Mapping[str, Any]) -> np.ndarray:
    """What an episode executed: (steps, A) float32.

    Raises:
        DataError: the file does not hold them.
    """
    shape = (line["steps"], line["action_dim"])
    count = shape[0] * shape[1]
    values = np.fromfile(folder / ACTIONS, dtype="<f4", count=count, offset=line["actions_offset"])
    if values.size != count:
        raise DataError(
            f"{folder / ACTIONS} holds {values.size} of the {count} numbers of seed {line['seed']}: remove the folder "
            "to have the rollouts run again."
        )
    return values.reshape(shape)


def summarise(lines: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Counts over episodes: the known ones decide the rate, unknown ones are counted apart.

    Returns:
        `successes`, `episodes` (with a known outcome), `unknown`, `stages` (highest stage, as text -> known episodes),
        `mean_steps`, `latency_ms` (median over episodes).
    """
    lines = list(lines)
    known = [line for line in lines if line["outcome"] in (SUCCESS, FAILURE)]
    stages = Counter(line["stage"] for line in known)
    return {
        "successes": sum(line["outcome"] == SUCCESS for line in known),
        "episodes": len(known),
        "unknown": len(lines) - len(known),
        "stages": {str(stage): stages[stage] for stage in sorted(stages)},
        "mean_steps": float(np.mean([line["steps"] for line in known])) if known else 0.0,
        "latency_ms": float(np.median([line["latency_ms"] for line in known])) if known else 0.0,
    }


def _damaged(path: Path, reason: str) -> DataError:
    return DataError(f"{path} is damaged ({reason}): remove the folder to have the rollouts run again.")


def _as_line(line: Mapping[str, Any]) -> str:
    return json.dumps(line, allow_nan=False) + "\n"
