"""What others see of the same planted faults: `python benchmarks/validation_peers.py DATASET --instances 50`.

Each fault at its stated severity is given to three readers of the same episode:

- `roboimi validate`: the checks of its number;
- plain h5py: open the file, read the arrays of the contract, as training scripts do; it sees what raises;
- h5py and a range: the same, and actions must be in [-1, 1], the rule of robomimic's dataset tools for recorded
  actions. On joint angles in radians that rule refuses sound episodes too, which the first row shows.
"""

import argparse
from pathlib import Path

import h5py
import numpy as np

from benchmarks.validation_detection import Bench
from benchmarks.validation_faults import EPISODE_FAULTS, MemoryView, Sample
from roboimi.vla.data.contract import DatasetContract
from roboimi.vla.data.episode import ACTION, STATE, image_name
from roboimi.vla.data.manifest import resolve_dataset


def main() -> None:
    """Plant, read three times and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--instances", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    bench = Bench(resolve_dataset(options.dataset))
    print("| check | fault | n | roboimi validate | plain h5py | h5py and a range |\n|---|---|---|---|---|---|")
    sound = [(plain(bench, sample), ranged(bench, sample)) for sample in bench.samples]
    refused = f"0 | {sum(first for first, _ in sound)} | {sum(second for _, second in sound)}"
    print(f"| - | none: sound episodes refused | {len(sound)} | {refused} |")
    for fault in EPISODE_FAULTS:
        rng = np.random.default_rng((options.seed, fault.number))
        ours = by_reading = by_range = 0
        for _ in range(options.instances):
            index = int(rng.integers(len(bench.samples)))
            sample = bench.samples[index].copy()
            fault.plant(sample, rng, fault.stated)
            found = bench.episode(index, sample, fault.codes)
            ours += any(finding.code in fault.codes and finding.episode == sample.file for finding in found)
            by_reading += plain(bench, sample)
            by_range += ranged(bench, sample)
        counts = f"{ours} | {by_reading} | {by_range}"
        print(f"| {fault.number} | {fault.name} | {options.instances} | {counts} |", flush=True)


def plain(bench: Bench, sample: Sample) -> bool:
    """Whether reading the episode as a training script does raises an error."""
    view = MemoryView(bench.ref, sample, {}, frames=0)
    try:
        _load(view.file, bench.ref.contract)
    except (LookupError, ValueError, OSError, TypeError):
        return True
    finally:
        view.close()
    return False


def _load(file: h5py.File, contract: DatasetContract) -> None:
    """Rows of state and action together, and one frame of each camera at a time of the episode."""
    state, action = file[STATE][()], file[ACTION][()]
    np.concatenate([state, action], axis=-1)
    frames = len(action)
    for frame in (0, frames // 2, frames - 1):
        np.stack([file[image_name(camera)][frame] for camera in contract.cameras])


def ranged(bench: Bench, sample: Sample) -> bool:
    """Whether reading raises, or an action is outside [-1, 1]."""
    return plain(bench, sample) or bool((np.abs(sample.arrays[ACTION]) > 1).any())


if __name__ == "__main__":
    main()
