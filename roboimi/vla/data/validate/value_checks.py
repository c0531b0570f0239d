"""Checks of one episode's numbers: times, states and actions."""

from collections.abc import Iterator

import h5py
import numpy as np

from roboimi.vla.data.episode import ACTION, IMAGES, STATE, TIMESTAMP
from roboimi.vla.data.validate.check import NotApplicable, Problem, Stage, check
from roboimi.vla.data.validate.file_checks import RESTORE
from roboimi.vla.data.validate.limits import Limits
from roboimi.vla.data.validate.signals import MIN_MOVEMENT, MIN_ROWS, paired_dims, usual_steps
from roboimi.vla.data.validate.structure_checks import RECORD_AGAIN
from roboimi.vla.data.validate.view import EpisodeView

_BLOCK = 4096
"""Rows of a small array read at a time."""


@check("E01-damaged-data", Stage.VALUES)
def damaged_data(episode: EpisodeView, limits: Limits) -> Iterator[Problem]:
    """Every row of every array can be read; a checksum in the file finds flipped bits."""
    for name in episode.known:
        dataset = episode.datasets[name]
        if name.startswith(f"{IMAGES}/"):
            bad = episode.cameras[name.removeprefix(f"{IMAGES}/")].unreadable
        else:
            bad = [row for start in range(0, len(dataset), _BLOCK) for row in _damaged(dataset, start)]
        if bad:
            what = f"{len(bad)} of {len(dataset)} rows cannot be read"
            yield Problem(what, RESTORE, frames=(bad[0], bad[-1]), dimension=f"/{name}")


@check("E09-finite", Stage.VALUES)
def finite(episode: EpisodeView, limits: Limits) -> Iterator[Problem]:
    """No NaN and no infinity, also not after the conversion to float32 that training uses."""
    for name, values in episode.low_dim():
        with np.errstate(over="ignore"):
            singles = values if name == TIMESTAMP else values.astype(np.float32)
        for column in range(singles.shape[1]):
            bad = np.flatnonzero(~np.isfinite(singles[:, column]))
            if len(bad):
                what = f"{len(bad)} values are NaN or infinite"
                yield Problem(what, RECORD_AGAIN, _span(bad), dimension_name(episode, name, column))


@check("E11-timestamps", Stage.VALUES)
def timestamps(episode: EpisodeView, limits: Limits) -> Iterator[Problem]:
    """Time goes on from row to row."""
    bad = np.flatnonzero(~(np.diff(_times(episode)) > 0))
    if len(bad):
        what = f"time stands still or goes back at {len(bad)} places"
        yield Problem(what, RECORD_AGAIN, (int(bad[0]), int(bad[-1]) + 1), f"/{TIMESTAMP}")


@check("W12-gap", Stage.VALUES)
def gap(episode: EpisodeView, limits: Limits) -> Iterator[Problem]:
    """No frame is missing: the time from row to row is never much longer than the contract's rate says."""
    steps = np.diff(_times(episode))
    long = (steps > limits.gap_frames / episode.contract.fps) & (steps <= limits.gap_seconds)
    yield from _gaps(steps, np.flatnonzero(long), "frames were dropped", "look whether the recorder keeps up")


@check("E12-gap", Stage.VALUES)
def long_gap(episode: EpisodeView, limits: Limits) -> Iterator[Problem]:
    """The recording never stopped for long."""
    steps = np.diff(_times(episode))
    yield from _gaps(steps, np.flatnonzero(steps > limits.gap_seconds), "the recording stood still", RECORD_AGAIN)


@check("W13-measured-rate", Stage.VALUES)
def measured_rate(episode: EpisodeView, limits: Limits) -> Iterator[Problem]:
    """Rows come at the contract's rate, by their own times."""
    step = float(np.median(np.diff(_times(episode))))
    fps = episode.contract.fps
    if step > 0 and abs(step * fps - 1) > limits.rate_tolerance:
        what = f"its rows come at {1 / step:.2f} Hz, not {fps} Hz"
        yield Problem(what, "import it at its own rate, or record again", dimension=f"/{TIMESTAMP}")


@check("E21-action-bounds", Stage.VALUES)
def action_bounds(episode: EpisodeView, limits: Limits) -> Iterator[Problem]:
    """Actions are within the robot's limits where they are known, and nowhere near what only a fault produces."""
    for name, values in episode.low_dim():
        if name == ACTION:
            low, high = bounds(limits.action_low, limits.action_high, values.shape[1], limits.limit_margin)
            low, high = np.maximum(low, -limits.max_abs_action), np.minimum(high, limits.max_abs_action)
            yield from _outside(episode, name, values, low, high, "actions")


@check("E21-joint-limits", Stage.VALUES)
def joint_limits(episode: EpisodeView, limits: Limits) -> Iterator[Problem]:
    """Joints are where the robot can have them."""
    if limits.state_low is None and limits.state_high is None:
        raise NotApplicable("the robot's joint ranges are not known")
    skip = set(limits.gripper_dims(episode.contract.state_names))
    for name, values in episode.low_dim():
        if name == STATE:
            low, high = bounds(limits.state_low, limits.state_high, values.shape[1], limits.limit_margin)
            yield from _outside(episode, name, values, low, high, "positions", skip)


@check("W25-jump", Stage.VALUES)
def jump(episode: EpisodeView, limits: Limits) -> Iterator[Problem]:
    """No joint is suddenly elsewhere."""
    state = episode.finite(STATE)
    if len(state) < MIN_ROWS:
        raise NotApplicable(f"it has fewer than {MIN_ROWS} rows")
    steps = np.abs(np.diff(state, axis=0))
    most = limits.jump_ratio * usual_steps(state)
    most[list(limits.gripper_dims(episode.contract.state_names))] = np.inf  # grippers snap shut
    if limits.state_velocity is not None:
        most = np.fmin(most, np.array(limits.state_velocity) * (1 + limits.limit_margin) / episode.contract.fps)
    for column in range(state.shape[1]):
        bad = np.flatnonzero(steps[:, column] > most[column])
        if len(bad):
            worst = bad[np.argmax(steps[bad, column])]
            what = f"it moves by {steps[worst, column]:.3g} within a frame, where {most[column]:.3g} would be much"
            yield Problem(what, RECORD_AGAIN, (int(bad[0]), int(bad[-1]) + 1), dimension_name(episode, STATE, column))


@check("W26-stuck", Stage.VALUES)
def stuck(episode: EpisodeView, limits: Limits) -> Iterator[Problem]:
    """Every joint that is told to move moves."""
    state, action = episode.finite(STATE), episode.finite(ACTION)
    grippers = limits.gripper_dims(episode.contract.state_names)
    pairs = [*paired_dims(episode.contract, limits).tolist(), *([index, index] for index in grippers)]
    if not pairs:
        raise NotApplicable("no action belongs to a joint of the state")
    for told, seen in pairs:
        if (
            told < action.shape[1]
            and action[:, told].std() > MIN_MOVEMENT
            and state[:, seen].std() < limits.stuck_spread
        ):
            what = f"it stands still at {state[0, seen]:.4g} while its action moves"
            yield Problem(what, "look at the joint's sensor", dimension=dimension_name(episode, STATE, seen))


@check("W27-clipped", Stage.VALUES)
def clipped(episode: EpisodeView, limits: Limits) -> Iterator[Problem]:
    """No joint and no action lies at the end of its range for most of the time in which it moves."""
    for name in (ACTION, STATE):
        values = episode.finite(name)
        names = episode.contract.action_names if name == ACTION else episode.contract.state_names
        skip = set(limits.gripper_dims(names))
        for column in range(values.shape[1]):
            if column in skip or np.ptp(values[:, column]) < MIN_MOVEMENT:
                continue
            for at in _plateaus(values[:, column]):
                inside = at[slice(*_moving(at))]
                if len(inside) >= MIN_ROWS // 2 and inside.mean() > limits.clipped_share:
                    rows = np.flatnonzero(at)
                    what = f"{100 * inside.mean():.0f} % of its rows are exactly {values[rows[0], column]:.4g}"
                    dimension = dimension_name(episode, name, column)
                    yield Problem(what, "look for a limit that cuts values off", _span(rows), dimension)


@check("W31-idle-end", Stage.VALUES)
def idle_end(episode: EpisodeView, limits: Limits) -> Iterator[Problem]:
    """The episode ends when the task does: no long standing still at its end."""
    state = episode.finite(STATE)
    if len(state) < MIN_ROWS:
        raise NotApplicable(f"it has fewer than {MIN_ROWS} rows")
    speed = np.abs(np.diff(state, axis=0)).max(axis=1)
    moving = np.flatnonzero(speed > max(0.02 * float(np.quantile(speed, 0.95)), 1e-6))
    last = int(moving[-1]) + 1 if len(moving) else 0
    idle = len(state) - 1 - last
    if idle > limits.idle_seconds * episode.contract.fps:
        what = f"nothing moves for the last {idle / episode.contract.fps:.1f} s"
        yield Problem(what, "end episodes when the task is done", (last, len(state) - 1))


@check("W31-not-successful", Stage.VALUES)
def not_successful(episode: EpisodeView, limits: Limits) -> Iterator[Problem]:
    """The demonstration succeeded, by its own attribute."""
    success = episode.attribute("success")
    if success is None:
        raise NotApplicable("there is no attribute success")
    if not success:
        yield Problem("it says that the task did not succeed", "drop it, unless failures are to be learned from")


def dimension_name(episode: EpisodeView, name: str, column: int) -> str:
    """`/action [3] left_elbow`."""
    names = {ACTION: episode.contract.action_names, STATE: episode.contract.state_names}.get(name)
    return f"/{name} [{column}] {names[column]}" if names else f"/{name} [{column}]"


def bounds(
    low: tuple[float, ...] | None, high: tuple[float, ...] | None, width: int, margin: float
) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest values (width,) with a margin of the range on both sides; infinite where unknown."""
    lowest = np.full(width, -np.inf) if low is None else np.array(low, dtype=float)
    highest = np.full(width, np.inf) if high is None else np.array(high, dtype=float)
    if len(lowest) != width or len(highest) != width:
        raise NotApplicable(f"limits are given for {min(len(lowest), len(highest))} dimensions, not {width}")
    reach = highest - lowest
    extra = margin * np.where(np.isfinite(reach), reach, 0.0)
    return lowest - extra, highest + extra


def _outside(
    episode: EpisodeView,
    name: str,
    values: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    things: str,
    skip: set[int] = frozenset(),
) -> Iterator[Problem]:
    for column in range(values.shape[1]):
        bad = np.flatnonzero((values[:, column] < low[column]) | (values[:, column] > high[column]))
        if len(bad) and column not in skip:
            worst = values[bad[np.argmax(np.abs(values[bad, column]))], column]
            what = f"{len(bad)} {things} are outside [{low[column]:g}, {high[column]:g}], such as {worst:g}"
            yield Problem(what, RECORD_AGAIN, _span(bad), dimension_name(episode, name, column))


def _times(episode: EpisodeView) -> np.ndarray:
    """(T,) seconds; values that are not finite are the business of E09-finite."""
    for name, values in episode.low_dim():
        if name == TIMESTAMP:
            if len(values) < 2:
                raise NotApplicable("it has one row")
            return values[:, 0].astype(np.float64)
    raise NotApplicable(f"there is no /{TIMESTAMP}")


def _gaps(steps: np.ndarray, bad: np.ndarray, what: str, then: str) -> Iterator[Problem]:
    for row in bad[:20]:
        yield Problem(f"{what} for {steps[row]:.3f} s", then, (int(row), int(row) + 1), f"/{TIMESTAMP}")


def _plateaus(values: np.ndarray) -> Iterator[np.ndarray]:
    """(T,) masks of the rows at the lowest and at the highest value."""
    for end in (values.min(), values.max()):
        yield np.abs(values - end) <= 1e-6 * max(1.0, float(np.ptp(values)))


def _moving(at: np.ndarray) -> tuple[int, int]:
    """From the first to the last row away from the end of the range: rest before and after the task does not count."""
    away = np.flatnonzero(~at)
    return (int(away[0]), int(away[-1]) + 1) if len(away) else (0, 0)


def _damaged(dataset: h5py.Dataset, start: int) -> Iterator[int]:
    """The rows of a block that cannot be read: none as a rule, found by one read of the block."""
    stop = min(start + _BLOCK, len(dataset))
    if not _readable(dataset, start, stop):
        yield from (row for row in range(start, stop) if not _readable(dataset, row, row + 1))


def _readable(dataset: h5py.Dataset, start: int, stop: int) -> bool:
    try:
        dataset[start:stop]
    except (OSError, RuntimeError):
        return False
    return True


def _span(rows: np.ndarray) -> tuple[int, int]:
    return (int(rows[0]), int(rows[-1]))
