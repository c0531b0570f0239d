"""What the checks measure against: the robot's limits, the caps on files of unknown origin, and thresholds.

Nothing here belongs to one robot. Joint ranges come from an MJCF, from a YAML file, or from the task that recorded the
dataset (`robot.py`); a check without the limits it needs is not applicable, never guessed.
"""

import dataclasses
import math
from typing import Any

from roboimi.errors import ConfigError

Bounds = tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Limits:
    """What the checks measure against, beyond the contract.

    Attributes:
        action_low: A lowest actions, in the units of the data; None: unknown.
        action_high: A highest actions, in the units of the data; None: unknown.
        state_low: S lowest joint positions, in the units of the data; None: unknown.
        state_high: S highest joint positions, in the units of the data; None: unknown.
        state_velocity: S highest speeds (units of the data a second); None: unknown.
        grippers: dimensions of state and action that are gripper openings, 0 closed to 1 open; None: those whose name
            holds "gripper".
        contract: fields that the dataset's contract must have; None: any.
        sim: what the attribute `sim` of every episode must be; None: the same in all.
        action_lead: frames by which the state follows the action; None: the same in all.
        limit_margin: share of a range by which positions may leave it.
        max_abs_action: beyond this an action is no joint target in any unit, but a fault of the recording.
        min_frames: fewest rows of a usable episode; a chunk of 16 actions needs as many.
        min_episodes: fewest episodes from which one can be told to be unlike the others.
        gap_frames: a step of time longer than this many frames is a gap.
        gap_seconds: a gap longer than this is an error.
        rate_tolerance: share by which the measured rate may miss the contract's.
        frozen_seconds: a camera may give the same picture this long while the joints move.
        lag_frames: a camera may be this many frames early or late.
        alignment_frames: the lead of actions over states may differ this much from the other episodes'.
        dark, bright, flat: mean grey below or above which, and spread below which, a picture shows nothing (0 to 255).
        jump_ratio: a step of a joint this many times its usual largest step is a jump.
        stuck_spread: a joint whose standard deviation is below this stands still.
        clipped_share: share of the rows that may lie at the end of a range.
        duplicate_spread: two episodes whose joints differ by less than this share of their spread are the same one.
        idle_seconds: an episode may end with this much standing still.
        drift_sigmas: drift from the first to the last episode in units of the episodes' scatter.
        max_array_bytes: most bytes that an array may declare.
        max_chunk_bytes: most bytes of one chunk, uncompressed.
        max_ratio: most bytes that a stored byte may become in an array other than the contract's.
        max_image_reads: images that may have to be decoded to read one.
    """

    action_low: Bounds | None = None
    action_high: Bounds | None = None
    state_low: Bounds | None = None
    state_high: Bounds | None = None
    state_velocity: Bounds | None = None
    grippers: tuple[int, ...] | None = None
    contract: dict[str, Any] | None = None
    sim: bool | None = None
    action_lead: float | None = None
    limit_margin: float = 0.05
    max_abs_action: float = 1e4
    min_frames: int = 16
    min_episodes: int = 5
    gap_frames: float = 1.5
    gap_seconds: float = 0.5
    rate_tolerance: float = 0.02
    frozen_seconds: float = 0.25
    lag_frames: float = 0.75
    alignment_frames: float = 0.5
    dark: float = 5.0
    bright: float = 250.0
    flat: float = 2.0
    jump_ratio: float = 4.0
    stuck_spread: float = 1e-4
    clipped_share: float = 0.5
    duplicate_spread: float = 0.01
    idle_seconds: float = 2.0
    drift_sigmas: float = 3.0
    max_array_bytes: int = 64 * 2**30
    max_chunk_bytes: int = 64 * 2**20
    max_ratio: float = 200.0
    max_image_reads: int = 4

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, list):
                object.__setattr__(self, field.name, value := tuple(value))
            wanted = type(field.default) if field.default is not None else tuple
            if field.name == "contract":
                fine = value is None or isinstance(value, dict)
            elif field.name == "sim":
                fine = value is None or isinstance(value, bool)
            elif field.name == "action_lead":
                fine = value is None or _is_number(value)
            elif wanted is tuple:
                fine = value is None or (isinstance(value, tuple) and all(_is_number(item) for item in value))
            else:
                fine = _is_number(value)
            if not fine:
                raise ConfigError(f"The limit {field.name} is {value!r}: give numbers of the kind that it holds.")

    def gripper_dims(self, names: tuple[str, ...]) -> tuple[int, ...]:
        """Which of the named dimensions are gripper openings."""
        if self.grippers is not None:
            return tuple(index for index in self.grippers if index < len(names))
        return tuple(index for index, name in enumerate(names) if "gripper" in name.lower())


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)
