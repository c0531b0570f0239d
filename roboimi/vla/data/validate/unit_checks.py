"""Checks of one episode's units and order: radians, gripper openings, which number is which joint."""

from collections.abc import Iterator

import numpy as np

from roboimi.vla.data.episode import ACTION, STATE
from roboimi.vla.data.validate.check import NotApplicable, Problem, Stage, check
from roboimi.vla.data.validate.limits import Limits
from roboimi.vla.data.validate.signals import MIN_ROWS, action_lead, paired_dims
from roboimi.vla.data.validate.value_checks import bounds, dimension_name
from roboimi.vla.data.validate.view import EpisodeView

TURN = 2 * np.pi

GRIPPER_MARGIN = 0.2
"""Share of the opening by which a gripper may leave 0 to 1: servos overshoot."""

CONVERT = "convert it when importing, or record again"

_CLEARLY = 0.5
_LEAST_DISTANCE = 0.1


@check("E22-degrees", Stage.VALUES)
def degrees(episode: EpisodeView, limits: Limits) -> Iterator[Problem]:
    """Joint angles are radians."""
    for name, given in ((STATE, limits.state_high), (ACTION, limits.action_high)):
        values = episode.finite(name)
        names = episode.contract.state_names if name == STATE else episode.contract.action_names
        skip = set(limits.gripper_dims(names))
        known = bounds(None, given, values.shape[1], limits.limit_margin)[1]
        most = np.abs(values).max(axis=0)
        turns_allowed = np.isfinite(known) & (known > TURN)
        bad = [column for column in np.flatnonzero((most > TURN) & ~turns_allowed) if column not in skip]
        if bad:
            which = ", ".join(f"[{column}] {names[column]}" for column in bad[:16])
            what = f"it reaches {most[bad].max():.4g}, more than a turn in radians: these seem to be degrees ({which})"
            yield Problem(what, CONVERT, dimension=f"/{name}")


@check("E23-gripper-range", Stage.VALUES)
def gripper_range(episode: EpisodeView, limits: Limits) -> Iterator[Problem]:
    """Gripper openings go from 0, closed, to 1, open."""
    found = False
    for name, low, high in (
        (STATE, limits.state_low, limits.state_high),
        (ACTION, limits.action_low, limits.action_high),
    ):
        names = episode.contract.state_names if name == STATE else episode.contract.action_names
        values = episode.finite(name)
        lowest, highest = bounds(low, high, values.shape[1], 0.0)
        for column in limits.gripper_dims(names):
            found = True
            least = lowest[column] if np.isfinite(lowest[column]) else 0.0
            most = highest[column] if np.isfinite(highest[column]) else 1.0
            margin = GRIPPER_MARGIN * (most - least)
            bad = np.flatnonzero((values[:, column] < least - margin) | (values[:, column] > most + margin))
            if len(bad):
                worst = values[bad[np.argmax(np.abs(values[bad, column]))], column]
                what = f"the opening is {worst:.4g}, outside [{least:g}, {most:g}]"
                frames = (int(bad[0]), int(bad[-1]))
                yield Problem(what, CONVERT, frames, dimension_name(episode, name, column))
    if not found:
        raise NotApplicable("no dimension is a gripper")


@check("W30-dimension-order", Stage.VALUES)
def dimension_order(episode: EpisodeView, limits: Limits) -> Iterator[Problem]:
    """Each action is nearest to the joint that has its name, and names in the file are those of the contract."""
    for attribute, names in (
        ("joint_names", episode.contract.state_names),
        ("action_names", episode.contract.action_names),
    ):
        written = episode.attribute(attribute)
        if isinstance(written, list) and [_text(item) for item in written] != list(names):
            what = f"the file names its dimensions {[_text(item) for item in written]}"
            yield Problem(what, "bring the dimensions into the contract's order", dimension=f"attribute {attribute}")
    pairs = paired_dims(episode.contract, limits)
    state, action = episode.finite(STATE), episode.finite(ACTION)
    if len(pairs) < 2 or len(state) < MIN_ROWS:
        raise NotApplicable("there are not two joints, or too few rows, to compare actions with")
    lead = round(max(0.0, action_lead(action, state, pairs) or 0.0))
    told, seen = action[: len(action) - lead, pairs[:, 0]], state[lead:, pairs[:, 1]]
    distance = np.sqrt(((told[:, :, None] - seen[:, None, :]) ** 2).mean(axis=0))
    for wrong in displaced(distance):
        where = ", ".join(f"[{pairs[row, 0]}] like joint [{pairs[column, 1]}]" for row, column in wrong)
        yield Problem(f"actions move like other joints than their own: {where}", CONVERT, dimension=f"/{ACTION}")


def displaced(distance: np.ndarray) -> list[list[tuple[int, int]]]:
    """Groups of dimensions that fit together clearly better in another order than as they are.

    Args:
        distance: (n, n) how far row i is from column j, in the units of the data.

    Returns:
        Cycles of (row, column), none where the order is right.
    """
    own = np.diag(distance)
    if not (own > _LEAST_DISTANCE).any() or not (distance.min(axis=1) < _CLEARLY * own).any():
        return []
    # Imported where it is needed, which is nearly never: it takes longer to load than everything else together.
    from scipy.optimize import linear_sum_assignment

    _, columns = linear_sum_assignment(distance)
    left = {int(row) for row in np.flatnonzero(columns != np.arange(len(columns)))}
    cycles = []
    while left:
        row = min(left)
        cycle = []
        while row in left:
            left.discard(row)
            cycle.append((row, int(columns[row])))
            row = int(columns[row])
        as_it_is = np.mean([distance[row, row] for row, _ in cycle])
        swapped = np.mean([distance[row, column] for row, column in cycle])
        if as_it_is > _LEAST_DISTANCE and swapped < _CLEARLY * as_it_is:
            cycles.append(cycle)
    return cycles


def _text(item: object) -> str:
    return item.decode(errors="replace") if isinstance(item, bytes) else str(item)
