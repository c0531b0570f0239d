"""Checks of one episode's file: its bytes, what it links to, and whether it is what HDF5 can safely read."""

import hashlib
from collections.abc import Iterator

import h5py
import numpy as np

from roboimi.errors import DataError
from roboimi.vla.data.episode import IMAGES
from roboimi.vla.data.hdf5 import BUILT_IN_FILTERS, Foreign, first_line, foreign_filters, has_references
from roboimi.vla.data.validate.check import DAMAGE, Problem, Stage, check
from roboimi.vla.data.validate.finding import is_printable
from roboimi.vla.data.validate.limits import Limits
from roboimi.vla.data.validate.view import EpisodeView

RESTORE = "restore the file from where it came, or drop it"
INSIDE = "write the data into the file itself"
REPACK = "write a clean copy with `roboimi validate DATASET --repack OUT`"

MOST_NAME = 255

_HASH_BLOCK = 4 * 2**20


@check("E02-content-hash", Stage.CONTENT)
def content_hash(episode: EpisodeView, limits: Limits) -> Iterator[Problem]:
    """The file is there, and its bytes are those that were hashed at ingest."""
    if not episode.is_plain_file:
        there = episode.path.is_symlink() or episode.path.exists()
        what = "it is no plain file" if there else "the manifest lists it and it is not there"
        yield Problem(what, RESTORE)
        return
    size = episode.path.stat().st_size
    if size != episode.entry.bytes:
        yield Problem(f"it has {size} bytes, not {episode.entry.bytes} as the manifest says", RESTORE)
    elif _sha256(episode) != episode.entry.sha256:
        yield Problem("its bytes are not those that the manifest was made of", RESTORE)


@check("E01-unopenable", Stage.OPEN)
def unopenable(episode: EpisodeView, limits: Limits) -> Iterator[Problem]:
    """HDF5 can open the file and list what is in it."""
    try:
        _ = episode.objects
    except DataError as error:
        yield Problem(f"it cannot be opened ({first_line(error.__cause__ or error)})", RESTORE)
    except DAMAGE as error:
        yield Problem(f"its index is damaged ({first_line(error)})", RESTORE)


@check("E04-links", Stage.OPEN)
def links(episode: EpisodeView, limits: Limits) -> Iterator[Problem]:
    """Nothing in the file leads to another file: such an episode could read any file of the machine."""
    for name, item in _objects(episode).items():
        if isinstance(item, Foreign):
            yield Problem(f"it is a {item.kind} to {item.target[:200]!r}", INSIDE, dimension=f"/{name}")


@check("E04-references", Stage.OPEN)
def references(episode: EpisodeView, limits: Limits) -> Iterator[Problem]:
    """No array and no attribute of the file holds references."""
    for name, dataset in _datasets(episode):
        if has_references(dataset.dtype):
            yield Problem("its elements are references, not values", INSIDE, dimension=f"/{name}")
    if _objects(episode):
        for name in list(episode.file.attrs)[:1000]:
            if has_references(episode.file.attrs.get_id(name).dtype):
                yield Problem("the attribute holds references", "write plain values", dimension=f"attribute {name}")


@check("E04-names", Stage.OPEN)
def names(episode: EpisodeView, limits: Limits) -> Iterator[Problem]:
    """Names in the file are printable and cannot be taken for paths."""
    for name in _objects(episode):
        unprintable = not all(is_printable(char) for char in name)
        if unprintable or len(name) > MOST_NAME or {"..", "."} & set(name.split("/")):
            what = "the name has characters that a terminal obeys" if unprintable else "the name reads as a path"
            what = "the name is too long" if len(name) > MOST_NAME else what
            yield Problem(what, "name arrays in letters, digits and . _ -", dimension=f"/{name[:60]}")


@check("E05-declared-size", Stage.OPEN)
def declared_size(episode: EpisodeView, limits: Limits) -> Iterator[Problem]:
    """No array or chunk declares more bytes than an episode can have, or unpacks to far more than is stored."""
    for name, dataset in _datasets(episode):
        declared = int(np.prod(dataset.shape or (1,), dtype=np.float64)) * dataset.dtype.itemsize
        stored = dataset.id.get_storage_size()
        chunk = int(np.prod(dataset.chunks or (0,), dtype=np.float64)) * dataset.dtype.itemsize
        if declared > limits.max_array_bytes:
            what = f"it declares {declared / 1e9:.1f} GB, more than {limits.max_array_bytes / 1e9:.0f} GB"
        elif chunk > limits.max_chunk_bytes:
            what = f"one chunk of it is {chunk / 1e6:.0f} MB, more than {limits.max_chunk_bytes / 1e6:.0f} MB"
        elif declared > limits.max_ratio * max(stored, 4096) and not _as_the_contract(episode, name, dataset):
            what = f"{stored} stored bytes become {declared}, more than {limits.max_ratio:.0f} times as many"
        else:
            continue
        yield Problem(what, RESTORE, dimension=f"/{name}")


@check("E05-filter", Stage.OPEN)
def filters(episode: EpisodeView, limits: Limits) -> Iterator[Problem]:
    """Every filter is one that comes with HDF5: any other would load a library of the machine."""
    for name, dataset in _datasets(episode):
        for number in foreign_filters(dataset):
            what = f"it is packed by the filter {number}, which is none of {', '.join(BUILT_IN_FILTERS.values())}"
            yield Problem(what, "write it with gzip, or unpacked", dimension=f"/{name}")


@check("W05-chunk-layout", Stage.STRUCTURE)
def chunk_layout(episode: EpisodeView, limits: Limits) -> Iterator[Problem]:
    """Reading one image does not unpack many: training reads images one by one."""
    for name in episode.known:
        dataset = episode.datasets[name]
        if not name.startswith(f"{IMAGES}/") or not dataset.chunks or dataset.ndim != 4:
            continue
        covering = np.prod([-(-size // part) for size, part in zip(dataset.shape[1:], dataset.chunks[1:], strict=True)])
        unpacked = covering * np.prod(dataset.chunks, dtype=np.float64) / max(np.prod(dataset.shape[1:]), 1)
        if unpacked > limits.max_image_reads:
            what = f"reading one image unpacks {unpacked:.0f} images (chunks of {dataset.chunks})"
            yield Problem(what, REPACK, dimension=f"/{name}")


def _sha256(episode: EpisodeView) -> str:
    digest = hashlib.sha256()
    with open(episode.path, "rb") as file:
        while block := file.read(_HASH_BLOCK):
            digest.update(block)
            episode.beat()
    return digest.hexdigest()


def _objects(episode: EpisodeView) -> dict[str, h5py.Dataset | Foreign]:
    """Everything in the file; nothing where it cannot be listed, which is the business of E01-unopenable."""
    try:
        return episode.objects
    except DAMAGE:
        return {}


def _datasets(episode: EpisodeView) -> Iterator[tuple[str, h5py.Dataset]]:
    yield from ((name, item) for name, item in _objects(episode).items() if isinstance(item, h5py.Dataset))


def _as_the_contract(episode: EpisodeView, name: str, dataset: h5py.Dataset) -> bool:
    """Whether manifest and contract say that the array is as large as it declares."""
    row = episode.known.get(name)
    return row is not None and dataset.shape == (episode.entry.frames, *row) and dataset.dtype.itemsize <= 8
