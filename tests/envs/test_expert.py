"""The expert succeeds, moves smoothly, and its labels stay clean while noise is executed."""

import numpy as np
import pytest

from roboimi.envs import kinematics, scene
from roboimi.envs.demonstration import demonstrate
from roboimi.envs.expert import OrnsteinUhlenbeckNoise, ScriptedExpert
from roboimi.envs.transfer_cube import TransferCubeEnv

JOINTS = [index for index in range(14) if index not in (6, 13)]
GRIPPERS = [6, 13]


@pytest.fixture(scope="module")
def env():
    return TransferCubeEnv(require_release=True)


def test_succeeds_with_noise(env):
    """998 of 1000 were measured; two failures among twenty would be something else."""
    episodes = [demonstrate(env, seed) for seed in range(20)]
    assert sum(episode.success for episode in episodes) >= 19
    assert np.median([len(episode.executed) for episode in episodes]) / 25 < 4.7  # s


@pytest.mark.parametrize("control_hz", [20, 50])
def test_succeeds_at_other_control_rates(control_hz):
    env = TransferCubeEnv(control_hz=control_hz, require_release=True)
    assert all(demonstrate(env, seed).success for seed in range(4))


@pytest.mark.parametrize("corner", [(0.0, 0.4), (0.0, 0.6), (0.2, 0.4), (0.2, 0.6)])
def test_targets_are_smooth_and_within_limits_over_the_whole_range(corner):
    actions = ScriptedExpert(np.array([*corner, 0.05])).actions.astype(np.float64)
    home = [*scene.HOME_ARM, 0.0998]
    joints = np.vstack([home * 2, actions])[:, JOINTS]
    assert np.abs(np.diff(joints, axis=0)).max() < 0.25  # rad in 40 ms
    # A jump would show in the second difference, whatever the speed.
    assert np.abs(np.diff(joints, n=2, axis=0)).max() < 0.12
    low, high = np.concatenate([kinematics.JOINT_LIMITS, kinematics.JOINT_LIMITS]).T
    assert (joints >= low).all()
    assert (joints <= high).all()
    assert actions[:, GRIPPERS].min() >= 0.0
    assert actions[:, GRIPPERS].max() <= 1.0


def test_duration_scale_and_control_rate_change_the_pace_not_the_path():
    cube = np.array([0.1, 0.5, 0.05])
    slow = ScriptedExpert(cube, control_hz=50, duration_scale=1.0)
    fast = ScriptedExpert(cube, control_hz=50, duration_scale=0.5)
    assert len(slow.actions) == 335
    np.testing.assert_allclose(
        slow.actions[1::2][: len(fast.actions)], fast.actions[: len(slow.actions) // 2], atol=1e-6
    )


def test_last_target_is_held():
    expert = ScriptedExpert(np.array([0.1, 0.5, 0.05]))
    np.testing.assert_array_equal(expert.action(10_000), expert.actions[-1])


def test_cube_out_of_reach_is_refused():
    with pytest.raises(kinematics.UnreachableError):
        ScriptedExpert(np.array([-0.5, 0.5, 0.05]))


def test_label_is_clean_and_executed_action_is_not(env):
    episode = demonstrate(env, seed=3)
    env.reset(seed=3)
    expert = ScriptedExpert(env.cube_pose())
    labels = np.stack([expert.action(step) for step in range(len(episode.executed))])
    np.testing.assert_array_equal(episode.arrays["action"], labels)
    difference = episode.executed - labels
    assert 0.005 < difference[:, JOINTS].std() < 0.02
    np.testing.assert_array_equal(difference[:, GRIPPERS], 0.0)


def test_recorded_states_are_those_before_each_executed_action(env):
    episode = demonstrate(env, seed=3)
    env.reset(seed=3)
    for row, executed in enumerate(episode.executed):
        np.testing.assert_array_equal(
            episode.arrays["observations/qpos"][row], env.joint_positions().astype(np.float32)
        )
        np.testing.assert_array_equal(
            episode.arrays["observations/environment_state"][row], env.cube_pose().astype(np.float32)
        )
        assert episode.arrays["observations/timestamp"][row] == row / 25
        env.step(executed)


def test_demonstration_follows_from_its_seed(env):
    first, again, other = demonstrate(env, 5), demonstrate(env, 5), demonstrate(env, 6)
    np.testing.assert_array_equal(first.executed, again.executed)
    np.testing.assert_array_equal(first.arrays["observations/qpos"], again.arrays["observations/qpos"])
    assert not np.array_equal(first.executed[:50], other.executed[:50])


@pytest.mark.parametrize("control_hz", [25, 50])
def test_noise_has_the_asked_strength_and_memory_at_any_rate(control_hz):
    noise = OrnsteinUhlenbeckNoise(np.random.default_rng(0), control_hz, std=0.01, correlation_s=0.2)
    samples = np.stack([noise.sample() for _ in range(20_000)])[:, JOINTS]
    assert samples[500:].std() == pytest.approx(0.01, rel=0.03)
    lag = round(0.2 * control_hz)
    correlation = np.mean(samples[500:-lag] * samples[500 + lag :]) / samples[500:].var()
    assert correlation == pytest.approx(np.exp(-1), abs=0.03)


def test_noise_starts_from_zero():
    first = [OrnsteinUhlenbeckNoise(np.random.default_rng(seed)).sample()[0] for seed in range(500)]
    assert np.std(first) < 0.7 * 0.01
