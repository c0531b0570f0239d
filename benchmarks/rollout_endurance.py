"""What 500 episodes leave behind: memory, OpenGL contexts, open files, processes.

    python benchmarks/rollout_endurance.py [--episodes 500] [--workers 2]

Short episodes (10 control steps) that look through three cameras, in worker processes; then as many environments made,
rendered and closed in this process, each with a context of its own.
"""

import argparse
import multiprocessing
import os
from pathlib import Path

import numpy as np
from rollout_speed import HoldStill

from roboimi.envs import render
from roboimi.envs.transfer_cube import TransferCubeEnv
from roboimi.vla.config import TrainRun, compose_config
from roboimi.vla.rollouts.worker_pool import WorkerPool


def memory(pid: int) -> float:
    """Resident memory of a process in MiB, its own pages only."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    return (int(fields["Private_Dirty"].split()[0]) + int(fields["Private_Clean"].split()[0])) / 1024


def open_files(pid: int) -> int:
    """How many file descriptors a process has."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def zombies() -> int:
    """Dead children of this process that nobody has waited for."""
    count = 0
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = status.read_text().rpartition(")")[2].split()[:2]
        except (FileNotFoundError, ProcessLookupError):
            continue
        count += state == "Z" and int(parent) == os.getpid()
    return count


def slope(samples: list[float]) -> float:
    """Growth over the second half of the samples, when everything is warm."""
    half = samples[len(samples) // 2 :]
    return half[-1] - half[0]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--episodes", type=int, default=500)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    task = TrainRun.from_config({**compose_config(["+task.env_kwargs.time_limit_s=0.4"]), "dataset": "none"}).task
    pool = WorkerPool(HoldStill(), task, workers=options.workers)
    samples: dict[str, list[float]] = {}
    for number, _ in enumerate(pool.run(range(options.episodes)), start=1):
        if number % 25 == 0:
            pids = {"parent": os.getpid()} | {
                f"worker {i}": p.pid for i, p in enumerate(multiprocessing.active_children())
            }
            for name, pid in pids.items():
                samples.setdefault(f"{name} MiB", []).append(memory(pid))
                samples.setdefault(f"{name} files", []).append(open_files(pid))
    print(f"{options.episodes} episodes in {options.workers} workers, {pool.hangs} hung, {pool.deaths} died")
    for name, values in samples.items():
        print(f"  {name:16} first {values[0]:8.1f}  last {values[-1]:8.1f}  second half {slope(values):+.1f}")
    print(f"  children left {len(multiprocessing.active_children())}, zombies {zombies()}")

    made = []
    for number in range(1, options.episodes + 1):
        env = TransferCubeEnv(frame_height=64, frame_width=64)
        env.reset(seed=number)
        assert np.any(env.render_cameras(["front"])["front"])
        if number % 2:
            env.close()  # the others are left to Python
        if number % 25 == 0:
            made.append(memory(os.getpid()))
    del env
    print(f"{options.episodes} renderers in one process, every second one never closed")
    print(f"  memory MiB       first {made[0]:8.1f}  last {made[-1]:8.1f}  second half {slope(made):+.1f}")
    print(f"  contexts waiting to be freed {len(render._abandoned)}")


if __name__ == "__main__":
    main()
