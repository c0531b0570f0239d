"""Small measures of joint trajectories: lead of the action over the state, steps, profiles."""

import numpy as np

from roboimi.vla.data.contract import DatasetContract
from roboimi.vla.data.validate.limits import Limits

MIN_MOVEMENT = 0.03
"""Standard deviation below which a joint does not move enough to tell a lead from it (units of the data)."""

MIN_ROWS = 32
"""Rows below which a trajectory is too short to compare in time."""

_RARE = 0.02


def paired_dims(contract: DatasetContract, limits: Limits) -> np.ndarray:
    """(n, 2) action and state dimensions of the same joint, grippers left out.

    Dimensions pair by name; where nothing has the same name they pair by place, if there are as many of each.
    """
    names = {name: index for index, name in enumerate(contract.state_names)}
    pairs = [(index, names[name]) for index, name in enumerate(contract.action_names) if name in names]
    if not pairs and contract.action_dim == contract.state_dim:
        pairs = [(index, index) for index in range(contract.action_dim)]
    grippers = set(limits.gripper_dims(contract.state_names))
    return np.array([pair for pair in pairs if pair[1] not in grippers], dtype=int).reshape(-1, 2)


def resample(rows: np.ndarray, points: int) -> np.ndarray:
    """(points, n): `rows` (T, n) at evenly spaced times."""
    places = np.linspace(0, len(rows) - 1, points)
    low = np.floor(places).astype(int)
    high = np.minimum(low + 1, len(rows) - 1)
    share = (places - low)[:, None]
    return rows[low] * (1 - share) + rows[high] * share


def action_lead(action: np.ndarray, state: np.ndarray, pairs: np.ndarray) -> float | None:
    """Frames by which the state follows the action, to a fraction of a frame; None where nothing moves.

    First order in the lead: action - state ≈ lead * d(state)/dt, least squares over all joints that move.

    Args:
        action: (T, A).
        state: (T, S).
        pairs: from `paired_dims`.
    """
    rows = min(len(action), len(state))
    if rows < MIN_ROWS or not len(pairs):
        return None
    told, seen = action[:rows, pairs[:, 0]], state[:rows, pairs[:, 1]]
    moving = np.minimum(told.std(axis=0), seen.std(axis=0)) > MIN_MOVEMENT
    speed = np.gradient(seen[:, moving], axis=0)
    power = float((speed**2).sum())
    return float(((told - seen)[:, moving] * speed).sum()) / power if power > 0 else None


def usual_steps(state: np.ndarray) -> np.ndarray:
    """(S,) the largest steps that each joint makes more than rarely; at least a quarter of what joints do as a rule."""
    steps = np.sort(np.abs(np.diff(state, axis=0)), axis=0)
    rank = min(len(steps), max(4, int(np.ceil(_RARE * len(steps)))))
    usual = steps[-rank]
    return np.maximum(usual, 0.25 * np.median(usual))


def runs(mask: np.ndarray) -> list[tuple[int, int]]:
    """First and last index (both inclusive) of every run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    return [(int(first), int(stop) - 1) for first, stop in edges.reshape(-1, 2)]
