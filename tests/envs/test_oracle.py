"""Parity with gym_aloha's own simulation of the task: same state and same actions give the same physics and rewards."""

import numpy as np
import pytest

from roboimi.envs.expert import OrnsteinUhlenbeckNoise, ScriptedExpert
from roboimi.envs.transfer_cube import TransferCubeEnv

pytestmark = pytest.mark.oracle


@pytest.fixture(scope="module")
def oracle():
    """gym_aloha's task at 50 Hz without its three 640x480 renders a step."""
    pytest.importorskip("dm_control", reason="install requirements/oracle.lock")
    from dm_control import mujoco
    from dm_control.rl import control
    from gym_aloha.constants import ASSETS_DIR, DT
    from gym_aloha.tasks import sim

    class BlindTask(sim.TransferCubeTask):
        def get_observation(self, physics):
            return {"qpos": self.get_qpos(physics), "qvel": self.get_qvel(physics)}

    physics = mujoco.Physics.from_xml_path(str(ASSETS_DIR / "bimanual_viperx_transfer_cube.xml"))
    environment = control.Environment(physics, BlindTask(), float("inf"), control_timestep=DT, flat_observation=False)

    def reset(cube_pose):
        sim.BOX_POSE[0] = cube_pose
        return environment.reset()

    environment.reset_with = reset
    return environment


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_whole_expert_episode_agrees(oracle, seed):
    env = TransferCubeEnv(control_hz=50, require_release=True)
    env.reset(seed=seed)
    expert = ScriptedExpert(env.cube_pose(), control_hz=50)
    noise = OrnsteinUhlenbeckNoise(np.random.default_rng(seed), control_hz=50)
    start = oracle.reset_with(env.cube_pose())
    np.testing.assert_allclose(env.data.qpos, oracle.physics.data.qpos, atol=1e-12)
    np.testing.assert_allclose(env.joint_positions(), start.observation["qpos"], atol=1e-12)

    rewards = []
    for step in range(len(expert.actions)):
        action = expert.action(step) + noise.sample()
        _, reward, _, _, _ = env.step(action)
        theirs = oracle.step(action)
        np.testing.assert_allclose(env.data.qpos, oracle.physics.data.qpos, atol=1e-6)
        np.testing.assert_allclose(env.joint_positions(), theirs.observation["qpos"], atol=1e-6)
        np.testing.assert_allclose(env.joint_velocities(), theirs.observation["qvel"], atol=1e-5)
        assert reward == theirs.reward
        rewards.append(reward)
    assert {0, 1, 2, 4} <= set(rewards)
