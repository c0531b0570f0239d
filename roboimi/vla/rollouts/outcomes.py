"""How an episode can end, and what is kept of it."""

from dataclasses import dataclass, field

import numpy as np

SUCCESS, FAILURE, UNKNOWN = "success", "failure", "unknown"


@dataclass(frozen=True)
class EpisodeTiming:
    """Where an episode's wall time went; nothing of it decides anything.

    Attributes:
        observe_s: rendering and reading the state.
        preprocess_s: resizing frames.
        encode_s: the vision tower, in the predictions that served this episode (each may serve others too).
        head_s: the rest of these predictions.
        step_s: physics.
        chunk_ms: median time of one prediction, in ms.
        control_ms: mean time of one control step, everything above included, in ms.
    """

    observe_s: float = 0.0
    preprocess_s: float = 0.0
    encode_s: float = 0.0
    head_s: float = 0.0
    step_s: float = 0.0
    chunk_ms: float = 0.0
    control_ms: float = 0.0


@dataclass(frozen=True)
class EpisodeOutcome:
    """How an episode ended.

    Attributes:
        seed: of the environment and of the policy's noise.
        outcome: `success`, `failure`, or `unknown`: the environment broke, which says nothing about the policy.
        stage: highest stage of the task reached.
        steps: control steps executed.
        chunks: chunks asked for.
        frame_size: (height, width) of the environment's frames before the resize; None where none was rendered.
        reason: why the outcome is unknown, else the empty string.
        actions: (steps, A) float32, what was executed: replayed on the same seed, it gives the same episode.
        timing: where the wall time went.
    """

    seed: int
    outcome: str
    stage: int
    steps: int
    chunks: int
    frame_size: tuple[int, int] | None
    reason: str
    actions: np.ndarray = field(repr=False, compare=False)
    timing: EpisodeTiming = field(default_factory=EpisodeTiming, compare=False)


def broken_off(seed: int, reason: str) -> EpisodeOutcome:
    """The outcome of an episode whose process is gone."""
    return EpisodeOutcome(
        seed=seed,
        outcome=UNKNOWN,
        stage=0,
        steps=0,
        chunks=0,
        frame_size=None,
        reason=reason,
        actions=np.zeros((0, 0), np.float32),
    )
