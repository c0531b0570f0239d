"""How an episode can end, and what is kept of it."""

from dataclasses import dataclass, field

import numpy as np

SUCCESS, FAILURE, UNKNOWN = "success", "failure", "unknown"


@dataclass(frozen=True)
class EpisodeOutcome:
    """How an episode ended.

    Attributes:
        seed: of the environment and of the policy's noise.
        outcome: `success`, `failure`, or `unknown`: the environment broke, which says nothing about the policy.
        stage: highest stage of the task reached.
        steps: control steps executed.
        chunks: chunks asked for.
        latency_ms: median time of the predictions that served this episode, in ms, each for a whole batch.
        frame_size: (height, width) of the environment's frames before the resize; None where none was rendered.
        reason: why the outcome is unknown, else the empty string.
        actions: (steps, A) float32, what was executed: replayed on the same seed, it gives the same episode.
    """

    seed: int
    outcome: str
    stage: int
    steps: int
    chunks: int
    latency_ms: float
    frame_size: tuple[int, int] | None
    reason: str
    actions: np.ndarray = field(repr=False, compare=False)
