"""Checks of one episode's images: cameras that freeze, lag behind the joints, or show nothing."""

from collections.abc import Iterator

import numpy as np

from roboimi.vla.data.episode import STATE
from roboimi.vla.data.validate.check import NotApplicable, Problem, Stage, check
from roboimi.vla.data.validate.limits import Limits
from roboimi.vla.data.validate.signals import MIN_MOVEMENT, MIN_ROWS, paired_dims, runs
from roboimi.vla.data.validate.structure_checks import RECORD_AGAIN
from roboimi.vla.data.validate.view import EpisodeView

_SMOOTHING = 15
"""Rows of the running mean that is taken off before images and joints are compared."""

_LEAST_CORRELATION = 0.6
_CLEARLY_BETTER = 0.06
"""By how much the correlation at another shift must exceed that at none."""


@check("E14-frozen-camera", Stage.VALUES)
def frozen_camera(episode: EpisodeView, limits: Limits) -> Iterator[Problem]:
    """No camera shows the very same picture for long while the joints move."""
    state = episode.finite(STATE)
    longest = max(2, round(limits.frozen_seconds * episode.contract.fps))
    for camera, facts in episode.cameras.items():
        for first, last in runs(facts.same):
            moved = float(np.abs(np.diff(state[max(first - 1, 0) : last + 1], axis=0)).sum(axis=0).max(initial=0.0))
            if last - first + 1 >= longest and moved > MIN_MOVEMENT:
                what = f"the picture stands still for {last - first + 2} frames while a joint moves by {moved:.2f}"
                yield Problem(what, RECORD_AGAIN, (first - 1, last), camera)


@check("W15-camera-lag", Stage.VALUES)
def camera_lag(episode: EpisodeView, limits: Limits) -> Iterator[Problem]:
    """Pictures change when joints move, not frames before or after."""
    state = episode.finite(STATE)
    joints = paired_dims(episode.contract, limits)[:, 1] if episode.contract.action_dim else []
    moving = state[:, joints if len(joints) else slice(None)]
    lags = {
        camera: lag(facts.change[1:], np.abs(np.diff(moving, axis=0)), episode.contract.fps)
        for camera, facts in episode.cameras.items()
    }
    if not any(value is not None for value in lags.values()):
        raise NotApplicable("it is short, or its pictures do not follow the joints closely enough")
    for camera, value in lags.items():
        if value is not None and abs(value) > limits.lag_frames:
            what = f"its pictures are {abs(value):.1f} frames {'behind' if value > 0 else 'ahead of'} the joints"
            yield Problem(what, "correct the camera's delay when recording or importing", dimension=camera)


@check("E16-blank-image", Stage.VALUES)
def blank_image(episode: EpisodeView, limits: Limits) -> Iterator[Problem]:
    """Every picture shows something: none is black, white or of one colour."""
    for camera, facts in episode.cameras.items():
        readable = np.isfinite(facts.mean)
        dark, bright = facts.mean < limits.dark, facts.mean > limits.bright
        for first, last in runs(readable & (dark | bright | (facts.spread < limits.flat))):
            kind = "black" if dark[first] else "white" if bright[first] else "of one colour"
            yield Problem(f"the picture is {kind}", RECORD_AGAIN, (first, last), camera)


def lag(change: np.ndarray, steps: np.ndarray, fps: int) -> float | None:
    """Frames by which pictures follow the joints; 0 where they are in time or it cannot be told, None without relation.

    The changes of the pictures are explained by the steps of all joints (least squares), at every shift in time; the
    shift that explains most is taken, to a fraction of a frame, if it explains clearly more than none does. Slow trends
    are taken off first, since they fit at every shift.

    Args:
        change: (T - 1,) how much the picture changed at each step.
        steps: (T - 1, n) how much each joint moved at each step.
        fps: rows a second.
    """
    most = max(4, round(0.25 * fps))
    if len(change) < MIN_ROWS + 2 * most or not np.isfinite(change).all():
        return None
    inner = slice(most, len(steps) - most)
    pictures, joints = _without_trend(np.sqrt(change)), _without_trend(np.sqrt(steps))[inner]
    joints = joints[:, joints.std(axis=0) > 1e-9]
    if not joints.shape[1]:
        return None
    basis, _ = np.linalg.qr(joints - joints.mean(axis=0))
    shifts = range(-most, most + 1)
    explained = np.array([_explained(np.roll(pictures, -shift)[inner], basis) for shift in shifts])
    best = int(np.argmax(explained))
    if explained[best] < _LEAST_CORRELATION**2:
        return None
    if np.sqrt(explained[best]) - np.sqrt(explained[most]) < _CLEARLY_BETTER:
        return 0.0
    if not 0 < best < len(explained) - 1:
        return float(best - most)
    before, peak, after = explained[best - 1 : best + 2]
    return best - most + float((before - after) / (2 * (before - 2 * peak + after)))


def _without_trend(values: np.ndarray) -> np.ndarray:
    """Minus the running mean along the first axis."""
    window = np.ones(_SMOOTHING)
    weight = np.convolve(np.ones(len(values)), window, "same")
    trend = np.apply_along_axis(lambda series: np.convolve(series, window, "same") / weight, 0, values)
    return values - trend


def _explained(values: np.ndarray, basis: np.ndarray) -> float:
    """Share of the variance of `values` that lies in the span of `basis`."""
    values = values - values.mean()
    power = float(values @ values)
    return float(((basis.T @ values) ** 2).sum()) / power if power > 0 else 0.0
