"""One episode of the scripted expert: what it saw, what it was meant to do, and whether it succeeded."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from roboimi.envs.expert import OrnsteinUhlenbeckNoise, ScriptedExpert
from roboimi.envs.transfer_cube import TransferCubeEnv

_NOISE_STREAM = 1  # apart from the stream that places the cube


@dataclass(frozen=True)
class Demonstration:
    """T steps of one episode.

    Attributes:
        arrays: by name in the episode file. `action` (T, 14) holds the clean targets, row i the one for the time from i
            to i + 1; `observations/qpos`, `observations/qvel` (T, 14), `observations/environment_state` (T, 7),
            `observations/timestamp` (T,) s and what `observe` gave are those at time i.
        executed: (T, 14) what the servos were told: the clean targets and the noise.
        success: whether the left gripper held the cube in the air and the right one had let go.
        stage: highest reward, 0 to 4.
        seed: of the episode.
    """

    arrays: dict[str, np.ndarray]
    executed: np.ndarray
    success: bool
    stage: int
    seed: int


def demonstrate(
    env: TransferCubeEnv,
    seed: int,
    *,
    duration_scale: float = 0.7,
    noise_std: float = 0.01,
    noise_correlation_s: float = 0.2,
    observe: Callable[[TransferCubeEnv], Mapping[str, np.ndarray]] = lambda env: {},
) -> Demonstration:
    """Let the expert act until it succeeds or time is up; everything follows from the seed.

    Args:
        env: with the success rule that the demonstration is to meet.
        seed: of the cube's pose and of the noise.
        duration_scale: pace of the expert.
        noise_std: standard deviation in rad of what is added to the joint targets.
        noise_correlation_s: correlation time of that noise in s.
        observe: further arrays by name, one row each, asked for before every step: the rendered frames.
    """
    env.reset(seed=seed)
    expert = ScriptedExpert(env.cube_pose(), env.control_hz, duration_scale)
    rng = np.random.default_rng((seed, _NOISE_STREAM))
    noise = OrnsteinUhlenbeckNoise(rng, env.control_hz, noise_std, noise_correlation_s)
    rows: list[dict[str, np.ndarray]] = []
    executed: list[np.ndarray] = []
    finished = False
    while not finished:
        label = expert.action(len(rows))
        rows.append({"action": label, **_state(env, len(rows)), **observe(env)})
        executed.append(label + noise.sample())
        _, _, terminated, truncated, info = env.step(executed[-1])
        finished = terminated or truncated
    arrays = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    return Demonstration(arrays, np.stack(executed), info["is_success"], info["stage"], seed)


def _state(env: TransferCubeEnv, step: int) -> dict[str, np.ndarray]:
    return {
        "observations/qpos": env.joint_positions().astype(np.float32),
        "observations/qvel": env.joint_velocities().astype(np.float32),
        "observations/environment_state": env.cube_pose().astype(np.float32),
        "observations/timestamp": np.float64(step / env.control_hz),
    }
