"""The files of one evaluation, written so that a kill loses at most the episodes that were running.

```
rollouts/<key>/
    episodes.jsonl              one line an episode, by seed
    actions.f32                 what each episode executed, (steps, A) little-endian float32 from its line's
                                `actions_offset` on (bytes): enough to see the episode again
    running.jsonl, running.f32  the same two in the order in which episodes ended; only until all have
    filmstrip_success.webp      one success and one failure, where there are any
    filmstrip_failure.webp
    seed_<seed>_<outcome>.mp4   videos of a few episodes, where they were asked for
    RESULT.json                 the summary; written last: the commit
```
The same policy on the same seeds gives the same bytes, but for what lies under `timing`.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from roboimi.errors import DataError, HeldByAnotherError
from roboimi.storage.atomic import atomic_path
from roboimi.vla.rollouts.outcomes import FAILURE, SUCCESS, UNKNOWN, EpisodeOutcome

EPISODES, ACTIONS = "episodes.jsonl", "actions.f32"
RUNNING_EPISODES, RUNNING_ACTIONS = "running.jsonl", "running.f32"


class EpisodeLog:
    """The episodes of one evaluation, open for one process at a time.

    Args:
        folder: of the evaluation.
        seeds: of the evaluation; lines of others are dropped, as are those whose outcome is unknown: these run again.

    Raises:
        HeldByAnotherError: another process is writing the same evaluation.
    """

    def __init__(self, folder: Path, seeds: Sequence[int]):
        self._folder, self._seeds = folder, list(seeds)
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
        self.lines = _write(folder, kept, RUNNING_EPISODES, RUNNING_ACTIONS)
        self._file = open(folder / RUNNING_EPISODES, "a", buffering=1)  # noqa: SIM115 (lives as long as the log)
        self._actions = open(folder / RUNNING_ACTIONS, "ab")  # noqa: SIM115

    def write(self, outcome: EpisodeOutcome, **fields: Any) -> None:
        """Add one episode. Its actions go first, so that every line has them."""
        self._append({**episode_fields(outcome), **fields}, outcome.actions)

    def _append(self, line: Mapping[str, Any], actions: np.ndarray) -> None:
        whole = {**line, "actions_offset": self._actions.tell()}
        self._actions.write(np.ascontiguousarray(actions, dtype="<f4").tobytes())
        self._actions.flush()
        self._file.write(_as_line(whole))
        self.lines[whole["seed"]] = whole

    def adopt(self, folder: Path) -> None:
        """Take the known episodes of another evaluation of the same policy, as far as they are missing here."""
        for line in read_episodes(folder):
            if line["seed"] not in self._seeds or line["seed"] in self.lines or line["outcome"] == UNKNOWN:
                continue
            self._append(line, read_actions(folder, line))

    def finish(self) -> None:
        """Put all episodes into their final files, by seed. Until the running one is gone, that is the true one."""
        in_order = [self.lines[seed] for seed in self._seeds if seed in self.lines]
        self.lines = _write(self._folder, in_order, EPISODES, ACTIONS)
        self._file.close()
        self._actions.close()
        (self._folder / RUNNING_EPISODES).unlink()
        (self._folder / RUNNING_ACTIONS).unlink()

    def close(self) -> None:
        """Close the files and let others write."""
        self._file.close()
        self._actions.close()
        os.close(self._lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _write(folder: Path, lines: Sequence[Mapping[str, Any]], episodes: str, actions: str) -> dict[int, dict[str, Any]]:
    """Write lines and their actions in this order, the actions first; gives the lines by seed."""
    written: dict[int, dict[str, Any]] = {}
    with atomic_path(folder / actions) as temporary, open(temporary, "wb") as file:
        for line in lines:
            values = read_actions(folder, line)
            written[line["seed"]] = {**line, "actions_offset": file.tell()}
            file.write(values.tobytes())
    with atomic_path(folder / episodes) as temporary:
        temporary.write_text("".join(_as_line(line) for line in written.values()))
    return written


def episode_fields(outcome: EpisodeOutcome) -> dict[str, Any]:
    """An outcome as the plain dict of its line."""
    return {
        "seed": outcome.seed,
        "outcome": outcome.outcome,
        "stage": outcome.stage,
        "steps": outcome.steps,
        "action_dim": outcome.actions.shape[1],
        "chunks": outcome.chunks,
        "noise_seed": outcome.seed,
        "frame_size": list(outcome.frame_size) if outcome.frame_size else None,
        "reason": outcome.reason,
        "timing": {name: round(value, 4) for name, value in asdict(outcome.timing).items()},
    }


def read_episodes(folder: Path) -> list[dict[str, Any]]:
    """All whole lines, by seed, or in the order in which they ended while some are missing; none without a file.

    A last line without its end was cut off by a kill, and is left out.

    Raises:
        DataError: a whole line is no episode, which no kill can cause.
    """
    path = _file(folder, RUNNING_EPISODES, EPISODES)
    if not path.exists():
        return []
    whole, _, _ = path.read_text().rpartition("\n")
    try:
        lines = [json.loads(line) for line in whole.splitlines()]
    except ValueError as error:
        raise _damaged(path, str(error)) from error
    for number, line in enumerate(lines, start=1):
        if not isinstance(line, dict) or not {"seed", "outcome", "steps", "actions_offset", "timing"} <= line.keys():
            raise _damaged(path, f"line {number} is no episode")
    return lines


def read_actions(folder: Path, line: Mapping[str, Any]) -> np.ndarray:
    """What an episode executed: (steps, A) float32.

    Raises:
        DataError: the file does not hold them.
    """
    shape = (line["steps"], line["action_dim"])
    count = shape[0] * shape[1]
    path = _file(folder, RUNNING_ACTIONS, ACTIONS)
    values = np.fromfile(path, dtype="<f4", count=count, offset=line["actions_offset"])
    if values.size != count:
        raise DataError(
            f"{path} holds {values.size} of the {count} numbers of seed {line['seed']}: remove the folder "
            "to have the rollouts run again."
        )
    return values.reshape(shape)


def summarise(lines: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Counts over episodes: the known ones decide the rate, unknown ones are counted apart.

    Returns:
        `successes`, `episodes` (with a known outcome), `unknown`, `stages` (highest stage, as text -> known episodes),
        `mean_steps`, `latency_ms` and `control_ms` (medians over episodes), `timing` (seconds of all episodes).
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
        "latency_ms": _median(known, "chunk_ms"),
        "control_ms": _median(known, "control_ms"),
        "timing": {
            name: round(sum(line["timing"][name] for line in known), 3)
            for name in ("observe_s", "preprocess_s", "encode_s", "head_s", "step_s")
        },
    }


def _median(lines: Sequence[Mapping[str, Any]], name: str) -> float:
    return float(np.median([line["timing"][name] for line in lines])) if lines else 0.0


def _file(folder: Path, running: str, final: str) -> Path:
    """The running file where there is one: a kill may have left the final ones half done."""
    return folder / (running if (folder / RUNNING_EPISODES).exists() else final)


def _damaged(path: Path, reason: str) -> DataError:
    return DataError(f"{path} is damaged ({reason}): remove the folder to have the rollouts run again.")


def _as_line(line: Mapping[str, Any]) -> str:
    return json.dumps(line, allow_nan=False) + "\n"
