"""How fast the validation is: `python benchmarks/validation_speed.py DATASET --gigabytes 1 2 4 8`.

Makes larger datasets of a recorded one by linking its episodes again and again under new names, and validates them
with a warm cache. Decoded bytes are those of the arrays, stored bytes those of the files: rendered images shrink to
about a tenth. Repeated episodes are duplicates, so these datasets fail; every other check runs as always.
"""

import argparse
import dataclasses
import os
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from roboimi.vla.data.manifest import DatasetRef, resolve_dataset
from roboimi.vla.data.validate.robot import known_limits
from roboimi.vla.data.validate.validate import validate_dataset


def main() -> None:
    """Validate at each size and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--gigabytes", type=float, nargs="+", default=[1.0, 2.0, 4.0, 8.0], help="decoded")
    parser.add_argument("--workers", type=int, nargs="+", default=[1])
    options = parser.parse_args()
    ref = resolve_dataset(options.dataset)
    limits = known_limits(ref)
    validate_dataset(ref, limits, again=True)
    titles = (
        "decoded",
        "stored",
        "episodes",
        "processes",
        "time",
        "decoded MB/s",
        "stored MB/s",
        "decoded MB a CPU second",
    )
    print("| " + " | ".join((*titles, "episodes/s", "CPU s/GB", "memory, all")) + " |")
    print("|" + "---|" * 11)
    for workers in options.workers:
        for gigabytes in options.gigabytes:
            with tempfile.TemporaryDirectory(dir=options.dataset.parent) as folder:
                larger = enlarge(ref, Path(folder), round(gigabytes * 1e9))
                with Memory() as memory:
                    started, before = time.perf_counter(), computed()
                    validate_dataset(larger, limits, again=True, workers=workers)
                    seconds, computing = time.perf_counter() - started, computed() - before
            episodes = len(larger.manifest.episodes)
            decoded = sum(decoded_bytes(larger, entry.frames) for entry in larger.manifest.episodes)
            stored = sum(entry.bytes for entry in larger.manifest.episodes)
            columns = (
                f"{decoded / 1e9:.2f} GB",
                f"{stored / 1e9:.2f} GB",
                episodes,
                workers,
                f"{seconds:.1f} s",
                f"{decoded / 1e6 / seconds:.0f}",
                f"{stored / 1e6 / seconds:.1f}",
                f"{decoded / 1e6 / computing:.0f}",
                f"{episodes / seconds:.1f}",
                f"{computing / (decoded / 1e9):.2f}",
                f"{memory.most / 2**20:.0f} MiB",
            )
            print("| " + " | ".join(str(column) for column in columns) + " |", flush=True)


def computed() -> float:
    """CPU seconds of this process and of its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def decoded_bytes(ref: DatasetRef, frames: int) -> int:
    """Of all arrays of one episode."""
    contract = ref.contract
    row = int(np.prod(contract.image_shape)) * contract.num_views
    return frames * (row + 4 * (contract.action_dim + 2 * contract.state_dim + contract.environment_state_dim) + 8)


def enlarge(ref: DatasetRef, folder: Path, wanted: int) -> DatasetRef:
    """A dataset of about `wanted` decoded bytes, of hard links to the episodes of `ref`."""
    entries, size = [], 0
    while size < wanted:
        entry = ref.manifest.episodes[len(entries) % len(ref.manifest.episodes)]
        file = f"episode_{len(entries):06d}.hdf5"
        os.link(ref.path(entry), folder / file)
        entries.append(dataclasses.replace(entry, file=file))
        size += decoded_bytes(ref, entry.frames)
    files = [entry.file for entry in entries]
    split = {"train": tuple(files[1:]), "validation": (files[0],)}
    manifest = dataclasses.replace(ref.manifest, episodes=tuple(entries), split=split)
    return DatasetRef(folder, manifest, manifest.digest)


class Memory:
    """Largest proportional memory of this process and its children together, looked at every 50 ms."""

    def __init__(self):
        self.most = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Memory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        children = Path(f"/proc/self/task/{os.getpid()}/children")
        while not self._done.wait(0.05):
            pids = [str(os.getpid()), *children.read_text().split()]
            self.most = max(self.most, sum(_resident(pid) for pid in pids))


def _resident(pid: str) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


if __name__ == "__main__":
    main()
