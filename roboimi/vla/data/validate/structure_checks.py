"""Checks of one episode's structure: which arrays it has, and whether they are what the contract says."""

from collections.abc import Iterator

import h5py
import numpy as np

from roboimi.vla.data.episode import IMAGES, image_name
from roboimi.vla.data.validate.check import NotApplicable, Problem, Stage, check
from roboimi.vla.data.validate.jpeg import is_compressed, wrong_frames
from roboimi.vla.data.validate.limits import Limits
from roboimi.vla.data.validate.view import EpisodeView

RECORD_AGAIN = "record the episode again, or drop it"


@check("E06-missing-array", Stage.STRUCTURE)
def missing_array(episode: EpisodeView, limits: Limits) -> Iterator[Problem]:
    """Every array of the contract and of the layout is there; cameras have a check of their own."""
    for name in episode.required:
        if name not in episode.datasets and not name.startswith(f"{IMAGES}/"):
            yield Problem("the array is missing", RECORD_AGAIN, dimension=f"/{name}")


@check("E06-camera-set", Stage.STRUCTURE)
def camera_set(episode: EpisodeView, limits: Limits) -> Iterator[Problem]:
    """The cameras are exactly those of the contract, or others that the layout says are there but not used."""
    prefix = f"{IMAGES}/"
    there = {name.removeprefix(prefix) for name in episode.datasets if name.startswith(prefix)}
    expected = set(episode.contract.cameras)
    for camera in sorted(expected - there):
        yield Problem(f"the camera is missing among {sorted(there)}", RECORD_AGAIN, dimension=camera)
    unused = {name.removeprefix(prefix) for name in episode.required if name.startswith(prefix)} - expected
    for camera in sorted(unused - there):
        yield Problem("the layout has this camera and the episode does not", RECORD_AGAIN, dimension=camera)
    for camera in sorted(there - expected - unused):
        yield Problem("the contract does not have this camera", "name it in the contract or drop it", dimension=camera)


@check("E07-shape", Stage.STRUCTURE)
def shape(episode: EpisodeView, limits: Limits) -> Iterator[Problem]:
    """Rows of states, actions and times have the contract's width; images have three channels."""
    for name, row in episode.known.items():
        image = name.startswith(f"{IMAGES}/")
        found = episode.datasets[name].shape
        if found and (len(found) == 4 and found[3] == 3 if image else found[1:] == row):
            continue
        if image and is_compressed(episode.datasets[name]):
            what, then = "its images are compressed", "decode them with `roboimi import aloha`"
        else:
            wanted = ", ".join(str(size) for size in (("T", "H", "W", 3) if image else ("T", *row)))
            what, then = f"its shape is {found}, not ({wanted})", RECORD_AGAIN
        yield Problem(what, then, dimension=f"/{name}")


@check("E07-dtype", Stage.STRUCTURE)
def dtype(episode: EpisodeView, limits: Limits) -> Iterator[Problem]:
    """Images are uint8, everything else is float32 or float64."""
    for name in episode.known:
        found = episode.datasets[name].dtype
        if name.startswith(f"{IMAGES}/"):
            if found != np.uint8:
                yield Problem(f"its type is {found}, not uint8", RECORD_AGAIN, dimension=f"/{name}")
        elif found.kind != "f" or found.itemsize not in (4, 8):
            yield Problem(f"its type is {found}, not float32 or float64", RECORD_AGAIN, dimension=f"/{name}")


@check("E08-equal-lengths", Stage.STRUCTURE)
def equal_lengths(episode: EpisodeView, limits: Limits) -> Iterator[Problem]:
    """All arrays have as many rows as the manifest says."""
    frames = episode.entry.frames
    for name in episode.known:
        rows = _rows(episode.datasets[name])
        if rows != frames:
            span = (min(rows, frames), max(rows, frames) - 1)
            what = f"it has {rows} rows, not {frames} as the manifest says"
            yield Problem(what, RECORD_AGAIN, span, dimension=f"/{name}")


@check("E10-minimum-length", Stage.STRUCTURE)
def minimum_length(episode: EpisodeView, limits: Limits) -> Iterator[Problem]:
    """The episode is long enough for one chunk of actions."""
    if episode.entry.frames < limits.min_frames:
        what = f"it has {episode.entry.frames} rows, fewer than {limits.min_frames}"
        yield Problem(what, "drop the episode, or lower the minimum")


@check("E13-declared-rate", Stage.STRUCTURE)
def declared_rate(episode: EpisodeView, limits: Limits) -> Iterator[Problem]:
    """The attribute `fps`, where there is one, is the contract's rate."""
    fps = episode.attribute("fps")
    if fps is None:
        raise NotApplicable("there is no attribute fps")
    if not np.array_equal(fps, episode.contract.fps):
        yield Problem(f"it was recorded at {fps} Hz, not {episode.contract.fps} Hz", RECORD_AGAIN, dimension="fps")


@check("E19-image-size", Stage.STRUCTURE)
def image_size(episode: EpisodeView, limits: Limits) -> Iterator[Problem]:
    """All images have the contract's size."""
    height, width = episode.contract.image_shape[:2]
    for camera in episode.contract.cameras:
        found = getattr(episode.datasets.get(image_name(camera)), "shape", None)
        if found is not None and len(found) == 4 and found[1:3] != (height, width):
            what = f"its images are {found[1]}x{found[2]}, not {height}x{width}"
            yield Problem(what, "record at the contract's size", dimension=camera)


@check("E20-undecodable-image", Stage.STRUCTURE)
def undecodable_image(episode: EpisodeView, limits: Limits) -> Iterator[Problem]:
    """Every compressed image can be decoded, and has the contract's size."""
    compressed = [
        name for name, item in episode.datasets.items() if name.startswith(f"{IMAGES}/") and is_compressed(item)
    ]
    if not compressed:
        raise NotApplicable("no image is compressed")
    for name in sorted(compressed):
        for frames, what in wrong_frames(episode.datasets[name], episode.contract.image_shape, episode.beat):
            yield Problem(what, RECORD_AGAIN, frames, dimension=name.removeprefix(f"{IMAGES}/"))


def _rows(dataset: h5py.Dataset) -> int:
    return dataset.shape[0] if dataset.shape else 0
