"""How much faster than real time rollouts are, with three cameras: four rungs, workers, and where the time goes.

    python benchmarks/rollout_speed.py [--episodes 8] [--workers 2]

All rungs run one after another in one process tree, so that their ratios hold on a machine whose speed is not known.
The first two need dm-control (`requirements/oracle.lock`).

1. gym_aloha as its authors step it: three 640 x 480 frames at each of 50 control steps a second, shadows and
   multisampling on
2. the same environment with this project's GL flags and its 320 x 320 frames
3. this project's environment at its 25 Hz, every frame of every step rendered
4. this project's rollouts: frames on demand, in worker processes, once without a network and once with the stand-in
   tower and the small head (untrained: their time does not depend on what they have learnt)

Beside the wall clock stands the CPU time of all processes, which a busy machine disturbs less.
"""

import argparse
import multiprocessing
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("MUJOCO_GL", "egl")

import numpy as np
import torch

from roboimi.envs.render import prepare_for_gl
from roboimi.envs.transfer_cube import DEFAULT_CAMERAS, TransferCubeEnv
from roboimi.vla.build import build_agent
from roboimi.vla.config import TaskConfig, TrainRun, compose_config
from roboimi.vla.rollouts.agent_policy import AgentPolicy, evaluating
from roboimi.vla.rollouts.rollout import ChunkRequest
from roboimi.vla.rollouts.task_env import ObservationView
from roboimi.vla.rollouts.worker_pool import WorkerPool

FRAME = 320
ALOHA_CAMERAS = ("top", "angle", "front_close")


class HoldStill:
    """Sees three cameras and holds the arms where they are: rollouts without a network, to the time limit."""

    view = ObservationView(2, "images", DEFAULT_CAMERAS)
    pred_horizon, num_action_steps = 16, 8
    encode_seconds = 0.0

    def predict(self, batch: dict[str, np.ndarray], requests: Sequence[ChunkRequest]) -> np.ndarray:
        """(B, 16, 14): the newest state, repeated."""
        return np.repeat(batch["state"][:, -1:], self.pred_horizon, axis=1)


class Speeds(NamedTuple):
    """Simulated seconds per second: of the wall clock, and of CPU time."""

    wall: float
    cpu: float


class Clock:
    """Wall and CPU time from its making on, the worker processes' included while they live."""

    def __init__(self):
        self._wall, self._cpu = time.perf_counter(), cpu_seconds()
        self.cpu = 0.0

    def look(self) -> None:
        """Read the CPU time; a worker that has ended can no longer be asked, so the largest reading counts."""
        self.cpu = max(self.cpu, cpu_seconds() - self._cpu)

    def speeds(self, simulated: float) -> Speeds:
        """After `simulated` seconds of task time; CPU time as of the last look, or of now."""
        return Speeds(
            simulated / (time.perf_counter() - self._wall), simulated / (self.cpu or cpu_seconds() - self._cpu)
        )


def cpu_seconds() -> float:
    """User and system time of this process and its living children."""
    ticks = 0
    for child in multiprocessing.active_children():
        fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def stock_aloha(steps: int) -> Speeds:
    """Simulated seconds per second of gym_aloha's own environment."""
    import gymnasium

    env = gymnasium.make("gym_aloha:gym_aloha/AlohaTransferCube-v0", obs_type="pixels_agent_pos")
    observation, _ = env.reset(seed=0)
    action = observation["agent_pos"].astype(np.float32)
    env.step(action)
    clock = Clock()
    for _ in range(steps):
        env.step(action)
    return clock.speeds(steps / 50)


def plain_aloha(steps: int) -> Speeds:
    """The same physics, task and 50 Hz, with this project's GL flags and frame size."""
    from dm_control import mujoco
    from dm_control.rl import control
    from gym_aloha.constants import ASSETS_DIR, DT
    from gym_aloha.tasks import sim

    class PlainTask(sim.TransferCubeTask):
        def get_observation(self, physics):
            flags = {"shadow": False, "reflection": False}
            return {
                "qpos": self.get_qpos(physics),
                "images": {
                    name: physics.render(FRAME, FRAME, camera_id=name, render_flag_overrides=flags)
                    for name in ALOHA_CAMERAS
                },
            }

    physics = mujoco.Physics.from_xml_path(str(ASSETS_DIR / "bimanual_viperx_transfer_cube.xml"))
    physics.model.vis.quality.offsamples = 0
    physics.model.vis.quality.shadowsize = 0
    env = control.Environment(physics, PlainTask(), float("inf"), control_timestep=DT, flat_observation=False)
    sim.BOX_POSE[0] = np.array([0.1, 0.5, 0.05, 1, 0, 0, 0])
    state = env.reset().observation["qpos"]
    env.step(state)
    clock = Clock()
    for _ in range(steps):
        env.step(state)
    return clock.speeds(steps / 50)


def every_step(steps: int) -> Speeds:
    """This project's environment, all cameras at every control step."""
    env = TransferCubeEnv(require_release=True)
    env.reset(seed=0)
    action = env.joint_positions()
    env.render_cameras(DEFAULT_CAMERAS)
    clock = Clock()
    for _ in range(steps):
        env.step(action)
        env.render_cameras(DEFAULT_CAMERAS)
    speeds = clock.speeds(steps / env.control_hz)
    env.close()
    return speeds


def on_demand(policy, task: TaskConfig, episodes: int, workers: int) -> dict[str, Any]:
    """Rollouts in workers, from the first prediction on: speed, and the share of the wall clock by what was done."""
    clock: list[Clock] = []

    def on_round(running: int) -> None:
        if not clock:
            clock.append(Clock())
        clock[0].look()

    began = time.perf_counter()
    pool = WorkerPool(policy, task, workers=workers, on_round=on_round)
    outcomes = list(pool.run(range(100_000, 100_000 + episodes)))
    speeds = clock[0].speeds(sum(outcome.steps for outcome in outcomes) / task.control_hz)
    totals = {
        name: sum(getattr(outcome.timing, name) for outcome in outcomes)
        for name in ("observe_s", "preprocess_s", "encode_s", "head_s", "step_s")
    }
    wall = sum(outcome.steps for outcome in outcomes) / task.control_hz / speeds.wall
    return {"speeds": speeds, "start_s": time.perf_counter() - began - wall, "wall_s": wall, **totals}


def real_policy(task: TaskConfig) -> AgentPolicy:
    """The stand-in tower and the local campaign's head, with statistics around the arms' home."""
    config = compose_config(["head=small", "encoder=standin"])
    dims = {"state": task.state_dim, "action": task.action_dim}
    statistics = {
        name: {"min": [-0.4] * dim, "max": [0.6] * dim, "mean": [0.1] * dim, "std": [0.2] * dim}
        for name, dim in dims.items()
    }
    return AgentPolicy(build_agent(config, statistics=statistics).eval(), task.cameras)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--episodes", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    prepare_for_gl()  # dm-control makes contexts of its own
    task = TrainRun.from_config({**compose_config(), "dataset": "none"}).task

    rungs = [
        ("1 stock gym_aloha", stock_aloha(6)),
        ("2 the same, our GL flags and sizes", plain_aloha(60)),
        ("3 ours, every step rendered", every_step(60)),
    ]
    still, agent = HoldStill(), real_policy(task)
    runs = {}
    with evaluating(agent.agent):
        for kind, policy in (("no network", still), ("stand-in, small head", agent)):
            for workers in (1, options.workers) * 2:  # in turn, the faster of two: something else may be running
                run = on_demand(policy, task, options.episodes, workers)
                if (kind, workers) not in runs or run["speeds"].wall > runs[kind, workers]["speeds"].wall:
                    runs[kind, workers] = run
    for (kind, workers), run in runs.items():
        rungs.append((f"4 ours on demand, {kind}, {workers} worker{'s' * (workers > 1)}", run["speeds"]))
    print(f"{'rung, simulated s per':60} {'wall s':>8} {'x rung 2':>9} {'CPU s':>8} {'x rung 2':>9}")
    base = rungs[1][1]
    for name, speeds in rungs:
        ratios = f"{speeds.wall:8.3f} {speeds.wall / base.wall:9.1f} {speeds.cpu:8.3f} {speeds.cpu / base.cpu:9.1f}"
        print(f"{name:60} {ratios}")
    for kind in ("no network", "stand-in, small head"):
        one, more = runs[kind, 1], runs[kind, options.workers]
        known = one["observe_s"] + one["step_s"] + one["encode_s"] + one["head_s"]
        ratio = more["speeds"].wall / one["speeds"].wall
        print(f"{kind}: {options.workers} workers are {ratio:.2f} x 1; ready in {more['start_s']:.1f} s")
        names = ("observe_s", "preprocess_s", "encode_s", "head_s", "step_s")
        parts = ", ".join(f"{name[:-2]} {100 * one[name] / one['wall_s']:.1f} %" for name in names)
        outside = 100 * (1 - known / one["wall_s"])
        print(f"  one worker: {parts}; outside rendering, physics and network {outside:.1f} %")


if __name__ == "__main__":
    main()
