"""The environment: Gymnasium's contract, state from the seed alone, staged reward, success, and no hidden rendering."""

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import roboimi.envs
from roboimi.envs import scene
from roboimi.envs.expert import ScriptedExpert
from roboimi.envs.transfer_cube import TransferCubeEnv, servo_targets
from roboimi.errors import ConfigError, PolicyOutputError


@pytest.fixture(scope="module")
def env():
    env = TransferCubeEnv(frame_height=48, frame_width=64)
    yield env
    env.close()


def expert_trajectory(env, seed):
    """States, rewards and infos of one noise-free expert episode."""
    env.reset(seed=seed)
    expert = ScriptedExpert(env.cube_pose(), env.control_hz)
    states, rewards, infos = [env.data.qpos.copy()], [], []
    finished = False
    while not finished:
        _, reward, terminated, truncated, info = env.step(expert.action(len(rewards)))
        finished = terminated or truncated
        states.append(env.data.qpos.copy())
        rewards.append(reward)
        infos.append(info)
    return np.array(states), np.array(rewards), infos


@pytest.mark.filterwarnings("ignore:.*infinity")
def test_gymnasium_checker_has_no_complaint():
    env = gymnasium.make(roboimi.envs.TRANSFER_CUBE, frame_height=48, frame_width=64, render_mode="rgb_array")
    check_env(env.unwrapped)
    env.close()


def test_registered_id_takes_the_control_rate():
    env = gymnasium.make("roboimi/TransferCube-v0", control_hz=50)
    observation, info = env.reset(seed=0)
    assert observation["agent_pos"].shape == (14,)
    assert observation["environment_state"].shape == (7,)
    assert info == {"is_success": False, "stage": 0}
    assert env.action_space.shape == (14,)
    assert env.unwrapped.max_steps == 400


def test_same_seed_same_state_whatever_came_before(env):
    first, _ = env.reset(seed=7)
    qpos, qvel = env.data.qpos.copy(), env.data.qvel.copy()
    expert_trajectory(env, seed=3)
    second, _ = env.reset(seed=7)
    np.testing.assert_array_equal(first["environment_state"], second["environment_state"])
    np.testing.assert_array_equal(env.data.qpos, qpos)
    np.testing.assert_array_equal(env.data.qvel, qvel)


def test_same_seed_same_trajectory_bit_for_bit(env):
    states, rewards, _ = expert_trajectory(env, seed=5)
    expert_trajectory(env, seed=6)
    again, rewards_again, _ = expert_trajectory(env, seed=5)
    fresh, _, _ = expert_trajectory(TransferCubeEnv(), seed=5)
    np.testing.assert_array_equal(states, again)
    np.testing.assert_array_equal(states, fresh)
    np.testing.assert_array_equal(rewards, rewards_again)


def test_cube_poses_fill_the_range(env):
    poses = []
    for seed in range(200):
        env.reset(seed=seed)
        poses.append(env.cube_pose())
    poses = np.array(poses)
    assert (poses[:, 0] >= 0.0).all()
    assert (poses[:, 0] <= 0.2).all()
    assert (poses[:, 1] >= 0.4).all()
    assert (poses[:, 1] <= 0.6).all()
    assert np.ptp(poses[:, :2], axis=0).min() > 0.19
    np.testing.assert_array_equal(poses[:, 2:], np.tile([0.05, 1, 0, 0, 0], (200, 1)))


def test_reset_without_a_seed_draws_another_pose(env):
    env.reset(seed=0)
    first = env.cube_pose()
    env.reset()
    assert not np.array_equal(first, env.cube_pose())


def test_home_state_is_in_the_units_of_the_contract(env):
    observation, _ = env.reset(seed=0)
    opening = (0.02239 - 0.01844) / (0.058 - 0.01844)
    home = [0, -0.96, 1.16, 0, -0.3, 0, opening]
    np.testing.assert_allclose(observation["agent_pos"], home * 2, atol=1e-6)
    assert observation["agent_pos"].dtype == np.float32


def test_two_fingers_follow_one_gripper_action():
    action = np.arange(14.0)
    targets = servo_targets(action)
    np.testing.assert_array_equal(targets[:6], action[:6])
    np.testing.assert_array_equal(targets[8:14], action[7:13])
    for finger, opening in ((6, 6.0), (14, 13.0)):
        assert targets[finger] == pytest.approx(0.01844 + opening * 0.03956)
        assert targets[finger + 1] == -targets[finger]


def test_gripper_opening_of_the_action_is_reached(env):
    observation, _ = env.reset(seed=0)
    action = observation["agent_pos"].copy()
    action[[6, 13]] = 0.8
    for _ in range(50):
        observation, *_ = env.step(action)
    np.testing.assert_allclose(observation["agent_pos"][[6, 13]], 0.8, atol=0.02)


def test_stages_come_in_order_and_success_needs_them_held(env):
    _, rewards, infos = expert_trajectory(env, seed=1)
    assert set(rewards) == {0.0, 1.0, 2.0, 4.0}
    assert np.flatnonzero(rewards == 4)[0] > np.flatnonzero(rewards == 2)[0] > np.flatnonzero(rewards == 1)[0]
    assert [info["stage"] for info in infos] == list(np.maximum.accumulate(rewards))
    assert [info["is_success"] for info in infos] == [False] * (len(infos) - 1) + [True]
    # 0.2 s at 25 Hz: five steps in a row, and the episode ends with the fifth.
    assert list(rewards[-5:]) == [4.0] * 5
    assert longest_run(rewards[:-1] == 4) == 4


def test_release_can_be_demanded(env):
    strict = TransferCubeEnv(require_release=True)
    _, rewards, _ = expert_trajectory(env, seed=1)
    _, strict_rewards, infos = expert_trajectory(strict, seed=1)
    assert infos[-1]["is_success"]
    assert len(strict_rewards) > len(rewards)
    opening = strict.joint_positions()[13]
    assert opening > 0.65  # contact with the cube is at 0.6


def test_dropping_the_cube_restarts_the_hold():
    env = TransferCubeEnv(success_hold_s=0.4)
    env.reset(seed=1)
    expert = ScriptedExpert(env.cube_pose())
    stages = []
    for step in range(100):
        action = expert.action(step)
        if stages[-3:] == [4, 4, 4]:
            break
        _, reward, terminated, _, _ = env.step(action)
        stages.append(reward)
        assert not terminated
    action[[6, 13]] = 1.0
    for _ in range(25):
        _, reward, terminated, _, info = env.step(action)
        assert not terminated
    assert reward == 0
    assert info == {"is_success": False, "stage": 4}


def test_truncated_after_eight_seconds_of_task_time():
    env = TransferCubeEnv(control_hz=10)
    observation, _ = env.reset(seed=0)
    outcomes = [env.step(observation["agent_pos"])[2:4] for _ in range(80)]
    assert outcomes == [(False, False)] * 79 + [(False, True)]


@pytest.mark.parametrize("control_hz", [0, -25, 30, 24])
def test_control_rate_must_divide_the_physics_rate(control_hz):
    with pytest.raises(ConfigError, match="500 Hz"):
        TransferCubeEnv(control_hz=control_hz)


@pytest.mark.parametrize("action", [np.zeros(13), np.zeros((1, 14)), np.full(14, np.nan)])
def test_malformed_action_is_refused_and_moves_nothing(env, action):
    env.reset(seed=0)
    before = env.data.qpos.copy()
    with pytest.raises(PolicyOutputError, match="14 finite numbers"):
        env.step(action)
    np.testing.assert_array_equal(env.data.qpos, before)


def test_action_beyond_the_joint_range_acts_like_the_limit(env):
    observation, _ = env.reset(seed=0)
    action = observation["agent_pos"].copy()
    action[5], action[6] = 100.0, 5.0
    env.step(action)
    far = env.data.qpos.copy()
    env.reset(seed=0)
    action[5], action[6] = env.action_space.high[5], 1.0
    env.step(action)
    np.testing.assert_allclose(env.data.qpos, far, atol=1e-6)


def test_nothing_is_rendered_unless_asked_for(env):
    expert_trajectory(env, seed=2)
    assert env._renderer is None
    env.render_cameras(["front", "top"])
    assert env._renderer.frames_rendered == 2
    expert_trajectory(env, seed=2)
    assert env._renderer.frames_rendered == 2


def test_rendering_does_not_disturb_the_physics(env):
    quiet, _, _ = expert_trajectory(env, seed=4)
    env.reset(seed=4)
    expert = ScriptedExpert(env.cube_pose())
    for step in range(10):
        env.render_cameras(["front"])
        env.step(expert.action(step))
    np.testing.assert_array_equal(env.data.qpos, quiet[10])


def test_render_shows_the_configured_cameras_side_by_side():
    env = TransferCubeEnv(cameras=("top", "front"), frame_height=48, frame_width=64, render_mode="rgb_array")
    env.reset(seed=0)
    frame = env.render()
    views = env.render_cameras(["top", "front"])
    env.close()
    assert frame.shape == (48, 128, 3)
    np.testing.assert_array_equal(frame, np.concatenate([views["top"], views["front"]], axis=1))


def test_velocities_are_the_derivative_of_positions(env):
    env.reset(seed=0)
    expert = ScriptedExpert(env.cube_pose())
    for step in range(15):
        env.step(expert.action(step))
    before, velocity = env.joint_positions(), env.joint_velocities()
    scale = scene.PHYSICS_TIMESTEP
    import mujoco

    mujoco.mj_step(env.model, env.data)
    # The integrator is semi-implicit: the new velocity moved the joints.
    np.testing.assert_allclose((env.joint_positions() - before) / scale, env.joint_velocities(), atol=1e-6)
    assert np.abs(velocity).max() > 0.1


def longest_run(flags):
    longest = run = 0
    for flag in flags:
        run = run + 1 if flag else 0
        longest = max(longest, run)
    return longest
