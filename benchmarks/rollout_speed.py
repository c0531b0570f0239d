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
"""

import argparse
import os
import time
from collections.abc import Sequence

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


def stock_aloha(steps: int) -> float:
    """Simulated seconds per wall second of gym_aloha's own environment."""
    import gymnasium

    env = gymnasium.make("gym_aloha:gym_aloha/AlohaTransferCube-v0", obs_type="pixels_agent_pos")
    observation, _ = env.reset(seed=0)
    action = observation["agent_pos"].astype(np.float32)
    env.step(action)
    started = time.perf_counter()
    for _ in range(steps):
        env.step(action)
    return steps / 50 / (time.perf_counter() - started)


def plain_aloha(steps: int) -> float:
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
    started = time.perf_counter()
    for _ in range(steps):
        env.step(state)
    return steps / 50 / (time.perf_counter() - started)


def every_step(steps: int) -> float:
    """This project's environment, all cameras at every control step."""
    env = TransferCubeEnv(require_release=True)
    env.reset(seed=0)
    action = env.joint_positions()
    env.render_cameras(DEFAULT_CAMERAS)
    started = time.perf_counter()
    for _ in range(steps):
        env.step(action)
        env.render_cameras(DEFAULT_CAMERAS)
    seconds = time.perf_counter() - started
    env.close()
    return steps / env.control_hz / seconds


def on_demand(policy, task: TaskConfig, episodes: int, workers: int) -> dict[str, float]:
    """Rollouts in workers, from the first prediction on: speed, and the share of the wall clock by what was done."""
    first: list[float] = []
    began = time.perf_counter()
    pool = WorkerPool(
        policy, task, workers=workers, on_round=lambda running: first or first.append(time.perf_counter())
    )
    outcomes = list(pool.run(range(100_000, 100_000 + episodes)))
    wall = time.perf_counter() - first[0]
    totals = {
        name: sum(getattr(outcome.timing, name) for outcome in outcomes)
        for name in ("observe_s", "preprocess_s", "encode_s", "head_s", "step_s")
    }
    simulated = sum(outcome.steps for outcome in outcomes) / task.control_hz
    return {"speed": simulated / wall, "start_s": first[0] - began, "wall_s": wall, **totals}


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
            for workers in (1, options.workers):
                runs[kind, workers] = on_demand(policy, task, options.episodes, workers)
    for (kind, workers), run in runs.items():
        rungs.append((f"4 ours on demand, {kind}, {workers} worker{'s' * (workers > 1)}", run["speed"]))
    print(f"{'rung':60} {'sim s / wall s':>14} {'x rung 2':>9}")
    for name, speed in rungs:
        print(f"{name:60} {speed:14.3f} {speed / rungs[1][1]:9.1f}")
    for kind in ("no network", "stand-in, small head"):
        one, more = runs[kind, 1], runs[kind, options.workers]
        known = one["observe_s"] + one["step_s"] + one["encode_s"] + one["head_s"]
        ratio = more["speed"] / one["speed"]
        print(f"{kind}: {options.workers} workers are {ratio:.2f} x 1; ready in {more['start_s']:.1f} s")
        names = ("observe_s", "preprocess_s", "encode_s", "head_s", "step_s")
        parts = ", ".join(f"{name[:-2]} {100 * one[name] / one['wall_s']:.1f} %" for name in names)
        outside = 100 * (1 - known / one["wall_s"])
        print(f"  one worker: {parts}; outside rendering, physics and network {outside:.1f} %")


if __name__ == "__main__":
    main()
