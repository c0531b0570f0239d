"""Files that try to harm their reader: what HDF5 follows, loads or unpacks if it is allowed to.

Each kind turns a sound episode into a hostile one. Used by the tests and by `validation_hostile.py`.
"""

import dataclasses
import struct
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np

from roboimi.storage.keys import sha256_file
from roboimi.vla.data.manifest import EpisodeEntry

SECRET = "/tmp/roboimi_secret_that_no_episode_may_open"
"""What hostile files lead to."""

_VELOCITY = "observations/qvel"


@dataclasses.dataclass(frozen=True)
class Kind:
    """A way to be hostile: the number of the checks that look for it, its name, and the change to a sound file."""

    number: int
    name: str
    plant: Callable[[Path, np.random.Generator], None]


def describe(path: Path, entry: EpisodeEntry) -> EpisodeEntry:
    """The entry of the file as it now is, as if the manifest had been made of it; rows as before."""
    return dataclasses.replace(entry, sha256=sha256_file(path), bytes=path.stat().st_size)


def damage_image(path: Path, sound: bytes, rng: np.random.Generator) -> int:
    """Change a byte of one stored image of the sound file; which frame it was."""
    path.write_bytes(sound)
    with h5py.File(path) as file:
        images = file["observations/images"]
        dataset = images[str(rng.choice(sorted(images)))]
        frame = int(rng.integers(len(dataset)))
        chunk = dataset.id.get_chunk_info(frame)
    content = bytearray(sound)
    content[chunk.byte_offset + int(rng.integers(chunk.size))] ^= 1 << int(rng.integers(8))
    path.write_bytes(content)
    return frame


def _edit(change: Callable[[h5py.File, np.random.Generator], None]) -> Callable[[Path, np.random.Generator], None]:
    def plant(path: Path, rng: np.random.Generator) -> None:
        with h5py.File(path, "r+", libver="latest") as file:
            change(file, rng)

    return plant


def _shape(file: h5py.File) -> tuple[int, ...]:
    return file["action"].shape


def external_link(file: h5py.File, rng: np.random.Generator) -> None:
    """An array that is a link to another file."""
    del file[_VELOCITY]
    file[_VELOCITY] = h5py.ExternalLink(SECRET, "/data")


def soft_link_chain(file: h5py.File, rng: np.random.Generator) -> None:
    """Soft links that end at an external link."""
    del file[_VELOCITY]
    file[_VELOCITY] = h5py.SoftLink("/a0")
    for index in range(8):
        file[f"a{index}"] = h5py.SoftLink(f"/a{index + 1}")
    file["a8"] = h5py.ExternalLink(SECRET, "/data")


def linked_group(file: h5py.File, rng: np.random.Generator) -> None:
    """A whole group that is a link to another file."""
    del file["observations/images"]
    file["observations/images"] = h5py.ExternalLink(SECRET, "/images")


def virtual(file: h5py.File, rng: np.random.Generator) -> None:
    """An array made of another file's."""
    shape = _shape(file)
    del file[_VELOCITY]
    layout = h5py.VirtualLayout(shape, "f4")
    layout[:] = h5py.VirtualSource(SECRET, "data", shape)
    file.create_virtual_dataset(_VELOCITY, layout)


def endless_virtual(file: h5py.File, rng: np.random.Generator) -> None:
    """An array whose very length is another file's to say."""
    width = _shape(file)[1]
    del file[_VELOCITY]
    layout = h5py.VirtualLayout((1, width), "f4", maxshape=(None, width))
    source = h5py.VirtualSource(SECRET, "data", (1, width), maxshape=(None, width))
    layout[: h5py.h5s.UNLIMITED, :] = source[: h5py.h5s.UNLIMITED, :]
    file.create_virtual_dataset(_VELOCITY, layout)


def numbered_virtual(file: h5py.File, rng: np.random.Generator) -> None:
    """An array made of as many files as can be found."""
    width = _shape(file)[1]
    del file[_VELOCITY]
    space = h5py.h5s.create_simple((10, width), (h5py.h5s.UNLIMITED, width))
    space.select_hyperslab((0, 0), (h5py.h5s.UNLIMITED, 1), (1, 1), (1, width))
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_virtual(space, f"{SECRET}_%b".encode(), b"data", h5py.h5s.create_simple((1, width)))
    h5py.h5d.create(file["observations"].id, b"qvel", h5py.h5t.NATIVE_FLOAT, space, plist)


def external_storage(file: h5py.File, rng: np.random.Generator) -> None:
    """An array whose bytes are another file's."""
    shape = _shape(file)
    del file[_VELOCITY]
    file.create_dataset(_VELOCITY, shape, "f4", external=[(SECRET, 0, int(np.prod(shape)) * 4)])


def object_references(file: h5py.File, rng: np.random.Generator) -> None:
    """An array of references."""
    file.create_dataset("references", data=[file["action"].ref] * 3, dtype=h5py.ref_dtype)


def region_references(file: h5py.File, rng: np.random.Generator) -> None:
    """An array of references to regions."""
    file.create_dataset("regions", data=[file["action"].regionref[:2]], dtype=h5py.regionref_dtype)


def attribute_references(file: h5py.File, rng: np.random.Generator) -> None:
    """An attribute that is a reference."""
    file.attrs.create("fps", file["action"].ref, dtype=h5py.ref_dtype)


def nasty_name(file: h5py.File, rng: np.random.Generator) -> None:
    """A name that a terminal obeys, or that reads as a path."""
    names = ["a\nERR forged", "\x1b[2Jcleared", "a\u202ecod.hdf5", "..", "x" * 1000, "a\u200bb", "a\x07", "a\rb"]
    name = names[int(rng.integers(len(names)))]
    group = file.create_group(name) if name == ".." else file
    group.create_dataset("data" if name == ".." else name, data=np.zeros(3))


def declared_bomb(file: h5py.File, rng: np.random.Generator) -> None:
    """An array that declares terabytes and stores nothing."""
    del file[_VELOCITY]
    file.create_dataset(_VELOCITY, (10**6, 10**6), "f4", chunks=(1000, 1000), compression="gzip")


def compression_bomb(file: h5py.File, rng: np.random.Generator) -> None:
    """A few hundred kilobytes that unpack to 128 MB."""
    file.create_dataset("padding", data=np.zeros(2**27, np.uint8), chunks=(2**22,), compression="gzip")


def huge_chunk(file: h5py.File, rng: np.random.Generator) -> None:
    """One chunk of gigabytes."""
    file.create_dataset("chunk", (2**31,), np.uint8, chunks=(2**31,), compression="gzip")


def scalar_bomb(file: h5py.File, rng: np.random.Generator) -> None:
    """States that declare a length no memory holds."""
    width = _shape(file)[1]
    del file["observations/qpos"]
    file.create_dataset("observations/qpos", (2**36, width), "f4", chunks=(1024, width))


def unknown_filter(file: h5py.File, rng: np.random.Generator) -> None:
    """An array behind a filter that HDF5 would load a library for."""
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_chunk((10,))
    plist.set_filter(int(rng.choice([307, 32001, 32004, 32015])), h5py.h5z.FLAG_OPTIONAL, ())
    h5py.h5d.create(file.id, b"filtered", h5py.h5t.NATIVE_FLOAT, h5py.h5s.create_simple((100,)), plist)


def many_objects(file: h5py.File, rng: np.random.Generator) -> None:
    """More groups than anybody lists."""
    for index in range(1050):
        file.create_group(f"g{index}")


def deep_groups(file: h5py.File, rng: np.random.Generator) -> None:
    """Groups within groups within groups."""
    file.create_group("/".join(["d"] * 200))


def circular_groups(file: h5py.File, rng: np.random.Generator) -> None:
    """A group that holds itself, and an external link so that the file is to be refused."""
    group = file.create_group("loop")
    group["self"] = file
    group["again"] = group
    file["out"] = h5py.ExternalLink(SECRET, "/data")


def overwritten_superblock(path: Path, rng: np.random.Generator) -> None:
    """Addresses in the superblock that lead anywhere."""
    content = bytearray(path.read_bytes())
    for offset in (12, 20, 28, 36):
        struct.pack_into("<Q", content, offset, int(rng.integers(0, 2**62)))
    path.write_bytes(content)


KINDS = (
    Kind(4, "external link", _edit(external_link)),
    Kind(4, "soft links to an external link", _edit(soft_link_chain)),
    Kind(4, "group linked from outside", _edit(linked_group)),
    Kind(4, "virtual dataset", _edit(virtual)),
    Kind(4, "endless virtual dataset", _edit(endless_virtual)),
    Kind(4, "numbered virtual dataset", _edit(numbered_virtual)),
    Kind(4, "external storage", _edit(external_storage)),
    Kind(4, "object references", _edit(object_references)),
    Kind(4, "region references", _edit(region_references)),
    Kind(4, "reference in an attribute", _edit(attribute_references)),
    Kind(4, "nasty name", _edit(nasty_name)),
    Kind(4, "groups in a circle", _edit(circular_groups)),
    Kind(5, "terabytes declared", _edit(declared_bomb)),
    Kind(5, "compression bomb", _edit(compression_bomb)),
    Kind(5, "huge chunk", _edit(huge_chunk)),
    Kind(5, "endless states", _edit(scalar_bomb)),
    Kind(5, "unknown filter", _edit(unknown_filter)),
    Kind(1, "a thousand groups", _edit(many_objects)),
    Kind(1, "groups two hundred deep", _edit(deep_groups)),
    Kind(1, "superblock that leads anywhere", overwritten_superblock),
)
