"""What damaged and hostile files can do: `python benchmarks/validation_hostile.py --mutations 10000 --hostile 600`.

Every mutation (bits, header, truncation, zeros, a block twice) of a small recorded-like episode is validated against
the manifest of the sound one; every hostile file against a manifest made of itself. Beside it, the same mutations are
read by plain h5py, from our layout and from ACT's (no checksums), each in a process that may die.
"""

import argparse
import collections
import contextlib
import dataclasses
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np

from benchmarks.hostile_files import KINDS, describe
from roboimi.vla.data.contract import DatasetContract
from roboimi.vla.data.episode import write_episode
from roboimi.vla.data.manifest import EpisodeEntry, Manifest, describe_episode
from roboimi.vla.data.validate.limits import Limits
from roboimi.vla.data.validate.pool import Death, Pool
from roboimi.vla.data.validate.run_episode import EpisodeResult
from roboimi.vla.data.validate.sandbox import MEMORY_BYTES

BATCH = 250
FRAMES = 24
CONTRACT = DatasetContract(14, 14, 0, ("top", "side"), 16, 16, 25)
HEADER = 2048


def main() -> None:
    """Mutate, validate and print Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mutations", type=int, default=10_000)
    parser.add_argument("--hostile", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument("--read", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.read:
        read_for_ever()
        return
    with tempfile.TemporaryDirectory() as folder:
        print("| files | n | accepted | parent crashes | reader deaths | slowest | peak memory of the reader |")
        print("|" + "---|" * 7)
        print(campaign("sound, as a control", Path(folder), sound_ones(20)).row(), flush=True)
        print(campaign("mutated", Path(folder), mutations(options.mutations, options.seed)).row(), flush=True)
        print(campaign("hostile", Path(folder), hostile(options.hostile, options.seed)).row(), flush=True)
        if not options.no_peer:
            print("\n| plain h5py reads | n | as before | other data, no error | error | reader died |\n|" + "---|" * 6)
            for layout in ("ours (fletcher32)", "ACT (no checksums)"):
                print(peer(layout, Path(folder), min(options.mutations, 2000), options.seed))


def episode(path: Path, plain: bool = False) -> bytes:
    """A small sound episode; as ACT's own recorder lays it out with `plain`."""
    rng = np.random.default_rng(7)
    arrays = {
        "action": rng.normal(size=(FRAMES, 14)).astype(np.float32),
        "observations/qpos": rng.normal(size=(FRAMES, 14)).astype(np.float32),
        "observations/qvel": rng.normal(size=(FRAMES, 14)).astype(np.float32),
        "observations/timestamp": np.arange(FRAMES) / 25,
    }
    for camera in CONTRACT.cameras:
        arrays[f"observations/images/{camera}"] = rng.integers(0, 256, (FRAMES, 16, 16, 3), dtype=np.uint8)
    if plain:
        with h5py.File(path, "w") as file:
            for name, values in arrays.items():
                file.create_dataset(name, data=values, chunks=(1, 16, 16, 3) if "images" in name else None)
    else:
        write_episode(path, arrays, CONTRACT, {"success": True})
    return path.read_bytes()


def mutate(sound: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    """One of five kinds of damage; never none."""
    while True:
        content = bytearray(sound)
        kind = ("bit", "header", "truncate", "zero", "block twice")[int(rng.integers(5))]
        place = int(rng.integers(len(content)))
        if kind == "bit":
            content[place] ^= 1 << int(rng.integers(8))
        elif kind == "header":
            for offset in rng.integers(0, min(HEADER, len(content)), int(rng.integers(1, 9))):
                content[offset] = int(rng.integers(256))
        elif kind == "truncate":
            del content[place:]
        elif kind == "zero":
            size = int(rng.integers(1, 4097))
            content[place : place + size] = bytes(len(content[place : place + size]))
        else:
            size, target = int(rng.integers(16, 4097)), int(rng.integers(len(content)))
            block = content[place : place + size]
            content[target : target + len(block)] = block
        if bytes(content) != sound:
            return kind, bytes(content)


def mutations(count: int, seed: int):
    """Writers of damaged files, and the entry of the sound one."""
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "episode_000000.hdf5"
        sound = episode(path)
        entry = describe_episode(path)
    for _ in range(count):
        yield entry, mutate(sound, rng)[1], None


def sound_ones(count: int):
    """Sound files: what is accepted shows that refusals are about the damage."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "episode_000000.hdf5"
        sound = episode(path)
        entry = describe_episode(path)
    for _ in range(count):
        yield entry, sound, None


def hostile(count: int, seed: int):
    """Writers of hostile files, each to be described as it is."""
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "episode_000000.hdf5"
        sound = episode(path)
        entry = describe_episode(path)
    for index in range(count):
        kind = KINDS[index % len(KINDS)]
        yield entry, sound, lambda target, kind=kind: kind.plant(target, rng)


@dataclasses.dataclass
class Tally:
    """What came of a campaign."""

    name: str
    files: int = 0
    accepted: int = 0
    deaths: int = 0
    slowest: float = 0.0
    memory: int = 0

    def row(self) -> str:
        """As a Markdown row; a crash of the parent would have ended the campaign."""
        memory = f"{self.memory / 2**20:.0f} MiB of {MEMORY_BYTES / 2**20:.0f}"
        return f"| {self.name} | {self.files} | {self.accepted} | 0 | {self.deaths} | {self.slowest:.2f} s | {memory} |"


def campaign(name: str, folder: Path, files) -> Tally:
    """Validate files in batches; each batch has a pool of its own, whose reader lives through it if it can."""
    tally = Tally(name)
    files = iter(files)
    while batch := [item for _, item in zip(range(BATCH), files, strict=False)]:
        entries = []
        for index, (entry, content, plant) in enumerate(batch):
            path = folder / f"episode_{index:06d}.hdf5"
            path.write_bytes(content)
            named = dataclasses.replace(entry, file=path.name)
            if plant is not None:
                plant(path)
                named = describe(path, named)
            entries.append(named)
        with Pool(setup(folder, entries), workers=1) as pool:
            last = time.monotonic()
            for _, outcome in pool.run([(entry.file, {"episode": entry.file}) for entry in entries]):
                now = time.monotonic()
                tally.slowest, last = max(tally.slowest, now - last), now
                tally.files += 1
                if isinstance(outcome, Death):
                    tally.deaths += 1
                else:
                    findings = EpisodeResult.from_dict(outcome).findings
                    tally.accepted += not any(finding.severity == "ERR" for finding in findings)
            for parser in pool._parsers:
                tally.memory = max(tally.memory, peak_memory(parser.pid))
    return tally


def setup(folder: Path, entries: list[EpisodeEntry]) -> dict:
    """What a pool is told."""
    manifest = Manifest(
        contract=CONTRACT,
        source={},
        layout={"format": "act-hdf5", "arrays": []},
        split={"train": tuple(entry.file for entry in entries), "validation": ()},
        episodes=tuple(entries),
    )
    return {
        "root": str(folder),
        "manifest": manifest.to_dict(),
        "digest": "0" * 64,
        "limits": dataclasses.asdict(Limits()),
    }


def peak_memory(pid: int) -> int:
    """Bytes of memory that a process ever had at once."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    return 0


def read_for_ever() -> None:
    """The peer: read every array of the files named on the input; say the digest of what was read, or the error."""
    for line in sys.stdin:
        try:
            digest = hashlib.sha256()
            with h5py.File(line.strip(), "r") as file:
                for name in ("action", "observations/qpos", "observations/qvel"):
                    digest.update(file[name][()].tobytes())
                for camera in CONTRACT.cameras:
                    digest.update(file[f"observations/images/{camera}"][()].tobytes())
            print(json.dumps(digest.hexdigest()), flush=True)
        except Exception:  # whatever it is, a plain loader would have shown it
            print("null", flush=True)


def peer(layout: str, folder: Path, count: int, seed: int) -> str:
    """What plain h5py makes of the same mutations, as a Markdown row."""
    rng = np.random.default_rng(seed)
    path = folder / "peer.hdf5"
    sound = episode(path, plain=layout.startswith("ACT"))
    found: collections.Counter[str] = collections.Counter()
    reader = None
    before = None
    for index in range(count + 1):
        if index:
            path.write_bytes(mutate(sound, rng)[1])
        if reader is None:
            reader = subprocess.Popen(
                [sys.executable, __file__, "--read"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        reader.stdin.write(f"{path}\n")
        reader.stdin.flush()
        answer = reader.stdout.readline()
        if not index:
            before = answer
        elif not answer:
            found["died"] += 1
            reader.wait()
            reader = None
        else:
            found["error" if answer == "null\n" else "same" if answer == before else "other"] += 1
    if reader is not None:
        reader.stdin.close()
        reader.wait()
    return f"| {layout} | {count} | {found['same']} | {found['other']} | {found['error']} | {found['died']} |"


if __name__ == "__main__":
    main()
