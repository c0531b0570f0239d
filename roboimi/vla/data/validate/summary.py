"""A few kilobytes that say what an episode is like, so that episodes can be compared without opening them again."""

import base64
import dataclasses
import hashlib
from typing import Any, Self

import numpy as np

from roboimi.vla.data.episode import ACTION, STATE, TIMESTAMP
from roboimi.vla.data.validate.check import DAMAGE, NotApplicable
from roboimi.vla.data.validate.limits import Limits
from roboimi.vla.data.validate.pictures import GRID
from roboimi.vla.data.validate.signals import action_lead, paired_dims, resample
from roboimi.vla.data.validate.view import EpisodeView

POINTS = 32
"""Rows of a profile."""

ROWS = 64
"""Hashes of a sketch."""


@dataclasses.dataclass
class CameraSummary:
    """What one camera showed on average.

    Attributes:
        picture: (GRID, GRID, 3) uint8 RGB, mean over the episode.
        brightness: mean grey, 0 to 255.
    """

    picture: np.ndarray
    brightness: float


@dataclasses.dataclass
class EpisodeSummary:
    """What an episode is like.

    Attributes:
        file: its name.
        frames: T.
        content: SHA-256 of states and actions as float32, whatever the file around them.
        rows: (at most ROWS,) uint64, the smallest hashes of single states: two episodes that share most of them
            share most of their rows (bottom-k sketch, Broder 1997).
        state: (POINTS, S) float32, states at evenly spaced times.
        action: (POINTS, A) float32.
        state_range: (4, S) float64: minimum, maximum, mean and standard deviation over all rows.
        action_range: (4, A) float64.
        lead: frames by which the state follows the action; None: unknown.
        rate: measured rows a second; None: unknown.
        sim: the attribute; None where there is none.
        success: the attribute; None where there is none.
        cameras: by name.
    """

    file: str
    frames: int
    content: str
    rows: np.ndarray
    state: np.ndarray
    action: np.ndarray
    state_range: np.ndarray
    action_range: np.ndarray
    lead: float | None
    rate: float | None
    sim: bool | None
    success: bool | None
    cameras: dict[str, CameraSummary]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; arrays in base64."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        for name, kind in _ARRAYS.items():
            fields[name] = {"shape": list(fields[name].shape), "data": _encode(fields[name].astype(kind))}
        fields["cameras"] = {
            name: {"picture": _encode(camera.picture), "brightness": camera.brightness}
            for name, camera in self.cameras.items()
        }
        return fields

    @classmethod
    def from_dict(cls, document: dict[str, Any]) -> Self:
        """The inverse of `to_dict`.

        Raises:
            ValueError, TypeError, KeyError: the document is something else.
        """
        fields = dict(document)
        for name, kind in _ARRAYS.items():
            raw = base64.b64decode(fields[name]["data"])
            fields[name] = np.frombuffer(raw, dtype=kind).reshape([int(size) for size in fields[name]["shape"]])
        fields["cameras"] = {
            str(name): CameraSummary(
                np.frombuffer(base64.b64decode(camera["picture"]), np.uint8).reshape(GRID, GRID, 3),
                float(camera["brightness"]),
            )
            for name, camera in fields["cameras"].items()
        }
        return cls(**fields)


_ARRAYS = {"rows": "<u8", "state": "<f4", "action": "<f4", "state_range": "<f8", "action_range": "<f8"}


def summarise(view: EpisodeView, limits: Limits) -> EpisodeSummary | None:
    """The summary of an episode; None where its states or actions cannot be read, or are not finite as float32."""
    try:
        state, action = view.finite(STATE), view.finite(ACTION)
    except (NotApplicable, *DAMAGE):
        return None
    if max(np.abs(state).max(initial=0.0), np.abs(action).max(initial=0.0)) > np.finfo(np.float32).max:
        return None
    if min(len(state), len(action)) < 2:
        return None
    pairs = paired_dims(view.contract, limits)
    return EpisodeSummary(
        file=view.entry.file,
        frames=len(state),
        content=_content(state, action),
        rows=_row_sketch(state),
        state=resample(state, POINTS).astype(np.float32),
        action=resample(action, POINTS).astype(np.float32),
        state_range=_range(state),
        action_range=_range(action),
        lead=action_lead(action, state, pairs),
        rate=_rate(view),
        sim=_flag(view, "sim"),
        success=_flag(view, "success"),
        cameras={
            name: CameraSummary(facts.picture.round().astype(np.uint8), float(np.nanmean(facts.mean)))
            for name, facts in view.cameras.items()
            if len(facts.unreadable) < len(facts.mean)
        },
    )


def _content(state: np.ndarray, action: np.ndarray) -> str:
    digest = hashlib.sha256()
    for array in (state, action):
        digest.update(np.ascontiguousarray(array, dtype="<f4").tobytes())
    return digest.hexdigest()


def _row_sketch(state: np.ndarray) -> np.ndarray:
    rows = {row.tobytes() for row in np.ascontiguousarray(state, dtype="<f4")}
    hashes = sorted(int.from_bytes(hashlib.blake2b(row, digest_size=8).digest(), "little") for row in rows)
    return np.array(hashes[:ROWS], dtype=np.uint64)


def _range(rows: np.ndarray) -> np.ndarray:
    return np.stack([rows.min(axis=0), rows.max(axis=0), rows.mean(axis=0), rows.std(axis=0)])


def _rate(view: EpisodeView) -> float | None:
    try:
        step = float(np.median(np.diff(view.finite(TIMESTAMP).reshape(-1))))
    except NotApplicable:
        return None
    return 1 / step if step > 0 else None


def _flag(view: EpisodeView, name: str) -> bool | None:
    value = view.attribute(name)
    return bool(value) if isinstance(value, bool | int | float) else None


def _encode(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
