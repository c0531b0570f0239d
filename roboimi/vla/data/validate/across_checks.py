"""Checks across episodes: one that is unlike all others, two that are the same, and what changes over a session.

They compare summaries (`summary.py`), so that no episode is opened twice.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np

from roboimi.vla.data.manifest import DatasetRef
from roboimi.vla.data.statistics import Statistics
from roboimi.vla.data.validate.check import NotApplicable, Problem, Stage, check
from roboimi.vla.data.validate.duplicates import duplicate_groups
from roboimi.vla.data.validate.limits import Limits
from roboimi.vla.data.validate.structure_checks import RECORD_AGAIN
from roboimi.vla.data.validate.summary import EpisodeSummary
from roboimi.vla.data.validate.unit_checks import CONVERT, displaced

DROP = "drop one of them"

_DEGREES = 180 / np.pi
_NEAR_DEGREES = (0.6 * _DEGREES, 1.7 * _DEGREES)
_LEAST_SPREAD = 2e-3
_LEAST_DIFFERENCE = 4.0
_LEAST_REDNESS = 0.3
_SURE_T = 5.0
_LEAST_FOR_DRIFT = 10


@dataclasses.dataclass(frozen=True)
class Summaries:
    """All episodes of a dataset that were looked at to the end, in the manifest's order.

    Attributes:
        ref: the dataset.
        episodes: their summaries.
        limits: what the checks measure against.
        statistics: of the train split, computed now; None where the dataset has errors.
        earlier: those that an earlier validation of the same dataset wrote; None where there are none.
    """

    ref: DatasetRef
    episodes: Sequence[EpisodeSummary]
    limits: Limits
    statistics: Statistics | None = None
    earlier: Statistics | None = None

    def require(self, least: int | None = None) -> None:
        """Go on only where there are enough episodes to tell one from the others."""
        least = self.limits.min_episodes if least is None else least
        if len(self.episodes) < least:
            number = len(self.episodes)
            raise NotApplicable(f"it compares at least {least} episodes, and {number} could be looked at to the end")

    def cameras(self) -> list[str]:
        """The contract's cameras that every episode shows."""
        names = self.ref.contract.cameras
        return [name for name in names if all(name in episode.cameras for episode in self.episodes)]

    def pictures(self, camera: str) -> np.ndarray:
        """(n, G, G, 3) float32."""
        return np.stack([episode.cameras[camera].picture for episode in self.episodes]).astype(np.float32)

    @cached_property
    def joints(self) -> list[int]:
        """Dimensions of the state that are no gripper."""
        grippers = set(self.limits.gripper_dims(self.ref.contract.state_names))
        return [index for index in range(self.ref.contract.state_dim) if index not in grippers]

    @cached_property
    def states(self) -> np.ndarray:
        """(n, POINTS, S) float64 profiles."""
        return np.stack([episode.state for episode in self.episodes]).astype(np.float64)

    @cached_property
    def duplicates(self) -> list[list[int]]:
        """Groups of episodes that are the same one."""
        return duplicate_groups(self.episodes, self.limits.duplicate_spread)


@check("E17-camera-swap", Stage.ACROSS)
def camera_swap(all_: Summaries, limits: Limits) -> Iterator[Problem]:
    """Every camera shows what it shows in the other episodes, not what another camera shows."""
    all_.require()
    cameras = all_.cameras()
    if len(cameras) < 2:
        raise NotApplicable("there are not two cameras")
    usual = [np.median(all_.pictures(camera), axis=0) for camera in cameras]
    for episode in all_.episodes:
        own = _own(episode, cameras)
        distance = np.array([[np.abs(picture - other).mean() for other in usual] for picture in own])
        for row, camera in enumerate(cameras):
            best = int(np.argmin(distance[row]))
            if best != row and distance[row, row] > _LEAST_DIFFERENCE and distance[row, best] < distance[row, row] / 2:
                what = f"it shows what the camera {cameras[best]} shows in the other episodes"
                yield Problem(what, "name the cameras as they are", dimension=camera, episode=episode.file)


@check("W18-colour-order", Stage.ACROSS)
def colour_order(all_: Summaries, limits: Limits) -> Iterator[Problem]:
    """Red and blue are in the same order in all episodes."""
    all_.require()
    for camera in all_.cameras():
        pictures = all_.pictures(camera)
        redness = (pictures[..., 0] - pictures[..., 2]).mean(axis=(1, 2))
        usual = float(np.median(redness))
        apart = np.abs(redness - usual)
        clear = max(_LEAST_REDNESS, 6 * float(np.median(apart)))
        for index in np.flatnonzero((apart > clear) & (np.abs(-redness - usual) < apart / 2)):
            what = "with red and blue exchanged its pictures would be like the other episodes'"
            yield Problem(what, "store RGB in all episodes", dimension=camera, episode=all_.episodes[index].file)


@check("E22-degrees-in-one", Stage.ACROSS)
def degrees_in_one(all_: Summaries, limits: Limits) -> Iterator[Problem]:
    """Joints move about as far as in the other episodes, not 57 times as far or as little."""
    all_.require()
    for name, ranges, names in (
        ("observations/qpos", "state_range", all_.ref.contract.state_names),
        ("action", "action_range", all_.ref.contract.action_names),
    ):
        spread = np.stack([getattr(episode, ranges)[3] for episode in all_.episodes])
        usual = np.median(spread, axis=0)
        skip = limits.gripper_dims(names)
        for episode, own in zip(all_.episodes, spread, strict=True):
            with np.errstate(divide="ignore", invalid="ignore"):
                more, less = own / usual, usual / own
            moving = (np.maximum(own, usual) > _LEAST_SPREAD) & (np.minimum(own, usual) > 0)
            moving[list(skip)] = False
            for ratio, word in ((more, "degrees"), (less, "radians, or scaled down,")):
                odd = moving & (ratio > _NEAR_DEGREES[0]) & (ratio < _NEAR_DEGREES[1])
                if odd.sum() * 2 > moving.sum() and odd.sum() >= 2:
                    what = f"{odd.sum()} of {moving.sum()} moving joints seem to be {word} unlike in other episodes"
                    yield Problem(what, CONVERT, dimension=f"/{name}", episode=episode.file)


@check("E23-gripper-unit", Stage.ACROSS)
def gripper_unit(all_: Summaries, limits: Limits) -> Iterator[Problem]:
    """Grippers open as far as in the other episodes: metres among openings would close them for ever."""
    found = False
    for name, ranges, names in (
        ("observations/qpos", "state_range", all_.ref.contract.state_names),
        ("action", "action_range", all_.ref.contract.action_names),
    ):
        for column in limits.gripper_dims(names):
            found = True
            reach = np.array([np.abs(getattr(episode, ranges)[:2, column]).max() for episode in all_.episodes])
            usual = float(np.median(reach)) if len(reach) else 0.0
            dimension = f"/{name} [{column}] {names[column]}"
            if len(reach) and usual < 0.12 and limits.state_high is None:
                what = f"it never opens beyond {reach.max():.3g}: these seem to be metres"
                yield Problem(what, CONVERT, dimension=dimension)
                continue
            for episode, own in zip(all_.episodes, reach, strict=True):
                if len(reach) >= limits.min_episodes and own < usual / 5:
                    what = f"it opens to {own:.3g} at most, in the other episodes to {usual:.3g}"
                    yield Problem(what, CONVERT, dimension=dimension, episode=episode.file)
    if not found:
        raise NotApplicable("no dimension is a gripper")


@check("E24-alignment", Stage.ACROSS)
def alignment(all_: Summaries, limits: Limits) -> Iterator[Problem]:
    """Actions lead the states by as many frames in every episode."""
    leads = np.array([np.nan if episode.lead is None else episode.lead for episode in all_.episodes])
    known = np.isfinite(leads)
    if limits.action_lead is None:
        if known.sum() < limits.min_episodes:
            raise NotApplicable(f"fewer than {limits.min_episodes} episodes show a lead to compare")
        usual = float(np.median(leads[known]))
    else:
        usual = limits.action_lead
    for index in np.flatnonzero(known):
        if abs(leads[index] - usual) > limits.alignment_frames:
            what = f"its states follow its actions by {leads[index]:.1f} frames, not by {usual:.1f}"
            yield Problem(what, "shift its actions when importing, or record again", episode=all_.episodes[index].file)


@check("W26-constant", Stage.ACROSS)
def constant(all_: Summaries, limits: Limits) -> Iterator[Problem]:
    """Every joint moves somewhere in the dataset."""
    all_.require(1)
    low = np.min([episode.state_range[0] for episode in all_.episodes], axis=0)
    high = np.max([episode.state_range[1] for episode in all_.episodes], axis=0)
    spread = np.max([episode.state_range[3] for episode in all_.episodes], axis=0)
    for column in np.flatnonzero((high - low < 10 * limits.stuck_spread) & (spread < limits.stuck_spread)):
        name = f"/observations/qpos [{column}] {all_.ref.contract.state_names[column]}"
        yield Problem(f"it is {low[column]:.4g} in all episodes", "leave it out if it is no joint", dimension=name)


@check("W26-stuck-in-one", Stage.ACROSS)
def stuck_in_one(all_: Summaries, limits: Limits) -> Iterator[Problem]:
    """No joint stands perfectly still in one episode that moves in the others."""
    all_.require()
    spread = np.stack([episode.state_range[3] for episode in all_.episodes])
    usual = np.median(spread, axis=0)
    for episode, own in zip(all_.episodes, spread, strict=True):
        for column in np.flatnonzero((own < limits.stuck_spread) & (usual > 10 * limits.stuck_spread)):
            name = f"/observations/qpos [{column}] {all_.ref.contract.state_names[column]}"
            what = "it stands still, and moves in the other episodes"
            yield Problem(what, "look at the joint's sensor", dimension=name, episode=episode.file)


@check("E28-duplicate", Stage.ACROSS)
def duplicate(all_: Summaries, limits: Limits) -> Iterator[Problem]:
    """No two episodes are the same one, whatever the bytes around them."""
    all_.require(2)
    for group in all_.duplicates:
        first = all_.episodes[group[0]].file
        for index in group[1:]:
            yield Problem(f"it is the same episode as {first}", DROP, episode=all_.episodes[index].file)


@check("E29-leakage", Stage.ACROSS)
def leakage(all_: Summaries, limits: Limits) -> Iterator[Problem]:
    """No episode that is held out is also trained on under another name."""
    all_.require(2)
    held_out = set(all_.ref.manifest.split["validation"])
    for group in all_.duplicates:
        files = [all_.episodes[index].file for index in group]
        trained = [file for file in files if file not in held_out]
        for file in files:
            if file in held_out and trained:
                what = f"it is held out, and the same episode as {trained[0]}, which is trained on"
                yield Problem(what, "put both into one part of the split", episode=file)


@check("W30-joint-swap", Stage.ACROSS)
def joint_swap(all_: Summaries, limits: Limits) -> Iterator[Problem]:
    """Joints move as the same joints do in the other episodes: left is left in all of them."""
    all_.require()
    usual = np.median(all_.states, axis=0)[:, all_.joints]
    for episode, states in zip(all_.episodes, all_.states, strict=True):
        own = states[:, all_.joints]
        distance = np.sqrt(((own[:, :, None] - usual[:, None, :]) ** 2).mean(axis=0))
        for wrong in displaced(distance):
            joints = [(all_.joints[row], all_.joints[column]) for row, column in wrong]
            where = ", ".join(f"[{row}] like [{column}]" for row, column in joints)
            what = f"joints move like others do in the other episodes: {where}"
            yield Problem(what, CONVERT, dimension="/observations/qpos", episode=episode.file)


@check("E32-stale-statistics", Stage.ACROSS)
def stale_statistics(all_: Summaries, limits: Limits) -> Iterator[Problem]:
    """The statistics that lie beside the manifest are those of these episodes."""
    if all_.earlier is None or all_.statistics is None:
        raise NotApplicable("there are no earlier statistics of this dataset to compare with")
    wrong = sorted(name for name in all_.statistics if all_.statistics[name] != all_.earlier.get(name))
    for name in wrong:
        what = f"VALIDATION.json had other statistics of {name} than the episodes have; they are written anew"
        yield Problem(what, "validate again, and train again what was trained with them", dimension=name)


@check("W33-drift", Stage.ACROSS)
def drift(all_: Summaries, limits: Limits) -> Iterator[Problem]:
    """Poses and brightness do not wander from the first episode to the last."""
    all_.require(_LEAST_FOR_DRIFT)
    names = all_.ref.contract.state_names
    series = {f"/observations/qpos [{column}] {names[column]}": all_.states[:, 0, column] for column in all_.joints}
    for camera in all_.cameras():
        series[camera] = np.array([episode.cameras[camera].brightness for episode in all_.episodes])
    first, last = all_.episodes[0].file, all_.episodes[-1].file
    for name, values in series.items():
        total, sigmas, sure = _trend(values)
        if sigmas > limits.drift_sigmas and sure > _SURE_T:
            what = f"it wanders by {total:.3g} from {first} to {last}, {sigmas:.1f} times its scatter"
            yield Problem(what, "look at calibration and light over the session", dimension=name)


@check("E34-sim", Stage.ACROSS)
def sim(all_: Summaries, limits: Limits) -> Iterator[Problem]:
    """All episodes say alike whether they are simulated: loaders shift the actions of real ones by a frame."""
    flags = [episode.sim for episode in all_.episodes]
    known = [flag for flag in flags if flag is not None]
    if not known and limits.sim is None:
        raise NotApplicable("no episode has the attribute sim")
    wanted = limits.sim if limits.sim is not None else 2 * sum(known) >= len(known)
    for episode, flag in zip(all_.episodes, flags, strict=True):
        if flag is not wanted:
            what = f"its attribute sim is {'missing' if flag is None else flag}, not {wanted}"
            yield Problem(what, RECORD_AGAIN, dimension="attribute sim", episode=episode.file)


def _own(episode: EpisodeSummary, cameras: list[str]) -> list[np.ndarray]:
    return [episode.cameras[camera].picture.astype(np.float32) for camera in cameras]


def _trend(values: np.ndarray) -> tuple[float, float, float]:
    """Change along a straight line from first to last, in the series' units, in standard deviations, and as |t|."""
    x = np.linspace(-0.5, 0.5, len(values))
    slope = float((x * (values - values.mean())).sum() / (x**2).sum())
    rest = values - values.mean() - slope * x
    scatter = max(float(np.sqrt((rest**2).sum() / (len(values) - 2))), 1e-3 * abs(float(values.mean())), 1e-6)
    return slope, abs(slope) / scatter, abs(slope) * float(np.sqrt((x**2).sum())) / scatter
