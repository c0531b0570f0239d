"""Rollouts: seeds alone decide, lockstep changes nothing, finished episodes rest, and only what is read is rendered."""

import gymnasium
import numpy as np
import pytest

from roboimi.envs.transfer_cube import TransferCubeEnv
from roboimi.errors import ConfigError, PolicyOutputError
from roboimi.vla.rollouts.agent_policy import AgentPolicy, chunk_noise
from roboimi.vla.rollouts.rollout import ChunkRequest, run_episodes
from roboimi.vla.rollouts.task_env import env_factory

SEEDS = [100_000, 100_001, 100_002, 100_003]


def by_seed(outcomes):
    return {outcome.seed: outcome for outcome in outcomes}


def test_success_is_counted_where_it_happens(task, expert_policy):
    policy = expert_policy(clumsy=[100_002])
    outcomes = by_seed(run_episodes(policy, env_factory(task), SEEDS, parallel_envs=4))
    assert {seed: outcome.outcome for seed, outcome in outcomes.items()} == {
        100_000: "success",
        100_001: "success",
        100_002: "failure",
        100_003: "success",
    }
    assert [outcomes[seed].stage for seed in SEEDS] == [4, 4, 0, 4]
    assert outcomes[100_002].steps == 8 * task.control_hz
    assert all(outcomes[seed].steps < 8 * task.control_hz for seed in (100_000, 100_001, 100_003))


def test_lockstep_equals_one_at_a_time(task, expert_policy):
    together = by_seed(run_episodes(expert_policy(clumsy=[100_001]), env_factory(task), SEEDS, parallel_envs=4))
    one_by_one = by_seed(run_episodes(expert_policy(clumsy=[100_001]), env_factory(task), SEEDS, parallel_envs=1))
    for seed in SEEDS:
        assert (together[seed].outcome, together[seed].stage, together[seed].steps) == (
            one_by_one[seed].outcome,
            one_by_one[seed].stage,
            one_by_one[seed].steps,
        )
        np.testing.assert_array_equal(together[seed].actions, one_by_one[seed].actions)


def test_same_seeds_give_the_same_episodes(short_task, tiny_agent):
    policy = AgentPolicy(tiny_agent("privileged_state"), short_task.cameras)
    first, second = (by_seed(run_episodes(policy, env_factory(short_task), SEEDS, parallel_envs=3)) for _ in range(2))
    for seed in SEEDS:
        np.testing.assert_array_equal(first[seed].actions, second[seed].actions)
    assert not np.array_equal(first[SEEDS[0]].actions, first[SEEDS[1]].actions)


def test_every_seed_has_an_initial_state_of_its_own_and_always_the_same(short_task, expert_policy):
    """Actions would differ by their noise alone: only what is observed first tells whether the start was repeated."""

    class Starts(type(expert_policy())):
        def predict(self, batch, requests):
            for row, request in enumerate(requests):
                if request.index == 0:
                    self.starts = {**getattr(self, "starts", {}), request.seed: batch["environment_state"][row, -1]}
            return super().predict(batch, requests)

    policies = [Starts(short_task), Starts(short_task)]
    list(run_episodes(policies[0], env_factory(short_task), SEEDS, parallel_envs=1))
    list(run_episodes(policies[1], env_factory(short_task), SEEDS[::-1], parallel_envs=3))
    env = env_factory(short_task)()
    for seed in SEEDS:
        expected = env.reset(seed=seed)[0]["environment_state"]
        for policy in policies:
            np.testing.assert_array_equal(policy.starts[seed], expected)
    env.close()
    assert len({start.tobytes() for start in policies[0].starts.values()}) == len(SEEDS)


def test_an_episode_does_not_depend_on_its_company(short_task, tiny_agent):
    policy = AgentPolicy(tiny_agent("privileged_state"), short_task.cameras)
    together = by_seed(run_episodes(policy, env_factory(short_task), SEEDS, parallel_envs=4))
    alone = by_seed(run_episodes(policy, env_factory(short_task), [SEEDS[3]], parallel_envs=1))
    np.testing.assert_array_equal(together[SEEDS[3]].actions, alone[SEEDS[3]].actions)


def test_nothing_of_an_episode_is_left_in_its_slot(short_task, tiny_agent):
    """20 steps in chunks of 8 leave 4 actions in the queue, and a history, at the end of each episode."""
    policy = AgentPolicy(tiny_agent("privileged_state"), short_task.cameras)
    after_others = by_seed(run_episodes(policy, env_factory(short_task), SEEDS, parallel_envs=1))[SEEDS[-1]]
    fresh = by_seed(run_episodes(policy, env_factory(short_task), SEEDS[-1:], parallel_envs=1))[SEEDS[-1]]
    np.testing.assert_array_equal(after_others.actions, fresh.actions)
    assert after_others.steps == 20


def test_one_prediction_serves_all_that_wait(short_task, expert_policy):
    policy = expert_policy()
    outcomes = list(run_episodes(policy, env_factory(short_task), SEEDS, parallel_envs=3))
    assert len(outcomes) == 4
    assert [len(call) for call in policy.calls] == [3, 3, 3, 1, 1, 1]
    assert policy.calls[1] == [ChunkRequest(seed, 1) for seed in SEEDS[:3]]
    assert policy.calls[3] == [ChunkRequest(SEEDS[3], 0)]


def test_freed_slots_are_filled_while_others_run(task, expert_policy):
    policy = expert_policy(clumsy=SEEDS[1:2])  # runs to the time limit, the others succeed earlier
    list(run_episodes(policy, env_factory(task), SEEDS, parallel_envs=2))
    mixed = [call for call in policy.calls if len({request.index for request in call}) > 1]
    assert mixed


def test_finished_episodes_neither_step_nor_render(counting_env, short_task, tiny_agent):
    make_env, log = counting_env
    policy = AgentPolicy(tiny_agent("siglip2_diffusion"), short_task.cameras)
    outcomes = list(run_episodes(policy, make_env, SEEDS[:2], parallel_envs=2))
    assert [outcome.steps for outcome in outcomes] == [20, 20]
    assert all(log["steps", seed] == 20 for seed in SEEDS[:2])  # CountingEnv itself refuses a step after the end


def test_only_frames_that_the_policy_reads_are_rendered(counting_env, short_task, tiny_agent):
    make_env, log = counting_env
    policy = AgentPolicy(tiny_agent("siglip2_diffusion"), short_task.cameras)
    (outcome,) = run_episodes(policy, make_env, SEEDS[:1], parallel_envs=1)
    rendered = {key[2]: count for key, count in log.items() if key[0] == "frames"}
    # To = 2, Ta = 8, V = 3: the start once, then the last two steps of each executed slice; 20 is the end.
    assert rendered == {0: 3, 7: 3, 8: 3, 15: 3, 16: 3}
    env = make_env()
    env.reset(seed=0)
    assert outcome.frame_size == env.render_cameras(short_task.cameras[:1])[short_task.cameras[0]].shape[:2]
    env.close()


@pytest.mark.parametrize("backbone", ["privileged_state", "blind"])
def test_policies_that_read_no_images_render_nothing(counting_env, short_task, tiny_agent, backbone):
    make_env, log = counting_env
    policy = AgentPolicy(tiny_agent(backbone), short_task.cameras)
    (outcome,) = run_episodes(policy, make_env, SEEDS[:1], parallel_envs=1)
    assert not [key for key in log if key[0] == "frames"]
    assert outcome.frame_size is None


def test_shorter_slices_render_every_step_they_read(counting_env, short_task, tiny_agent):
    make_env, log = counting_env
    policy = AgentPolicy(tiny_agent("siglip2_diffusion"), short_task.cameras, num_action_steps=1)
    list(run_episodes(policy, make_env, SEEDS[:1], parallel_envs=1))
    assert sorted(key[2] for key in log if key[0] == "frames") == list(range(20))


def test_history_repeats_the_first_observation(short_task, expert_policy):
    class Recording(type(expert_policy())):
        def predict(self, batch, requests):
            self.seen = [*getattr(self, "seen", []), batch]
            return super().predict(batch, requests)

    policy = Recording(short_task)
    list(run_episodes(policy, env_factory(short_task), SEEDS[:1], parallel_envs=1))
    np.testing.assert_array_equal(policy.seen[0]["state"][0, 0], policy.seen[0]["state"][0, 1])
    assert not np.array_equal(policy.seen[1]["state"][0, 0], policy.seen[1]["state"][0, 1])


def test_a_broken_environment_is_unknown_and_is_replaced(short_task, expert_policy):
    made = []

    class Breaking(TransferCubeEnv):
        def reset(self, *, seed=None, options=None):
            self.seed = seed
            return super().reset(seed=seed, options=options)

        def step(self, action):
            if self.seed == SEEDS[1] and self._steps == 5:
                raise RuntimeError("the solver\ngave up")
            return super().step(action)

    def make():
        made.append(Breaking(**short_task.env_kwargs))
        return made[-1]

    outcomes = by_seed(run_episodes(expert_policy(), make, SEEDS, parallel_envs=1))
    assert [outcomes[seed].outcome for seed in SEEDS] == ["failure", "unknown", "failure", "failure"]
    assert outcomes[SEEDS[1]].reason == "RuntimeError: the solver gave up"
    assert len(made) == 2


def test_a_state_that_is_not_finite_is_unknown_and_not_a_failure(short_task, expert_policy):
    class Exploding(TransferCubeEnv):
        def step(self, action):
            observation, *rest = super().step(action)
            return {**observation, "agent_pos": observation["agent_pos"] * np.float32(np.nan)}, *rest

    (outcome,) = run_episodes(expert_policy(), lambda: Exploding(**short_task.env_kwargs), SEEDS[:1], parallel_envs=1)
    assert outcome.outcome == "unknown"
    assert "not finite" in outcome.reason


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_actions_that_are_not_finite_stop_everything(short_task, expert_policy, bad):
    class Broken(type(expert_policy())):
        def predict(self, batch, requests):
            chunks = super().predict(batch, requests)
            chunks[-1, 3, 2] = bad
            return chunks

    with pytest.raises(PolicyOutputError, match=f"chunk 0 of seed {SEEDS[1]}"):
        list(run_episodes(Broken(short_task), env_factory(short_task), SEEDS[:2], parallel_envs=2))


def test_chunks_of_another_shape_are_refused(short_task, expert_policy):
    class Short(type(expert_policy())):
        def predict(self, batch, requests):
            return super().predict(batch, requests)[:, :-1]

    with pytest.raises(PolicyOutputError, match="horizon of 16"):
        list(run_episodes(Short(short_task), env_factory(short_task), SEEDS[:1], parallel_envs=1))


@pytest.mark.parametrize(("seeds", "says"), [([], "no rollout seeds"), ([1, 2, 1], "twice")])
def test_seeds_that_make_no_experiment_are_refused(short_task, expert_policy, seeds, says):
    with pytest.raises(ConfigError, match=says):
        list(run_episodes(expert_policy(), env_factory(short_task), seeds, parallel_envs=2))


def test_an_environment_without_a_verdict_is_refused(short_task, expert_policy):
    class Mute(TransferCubeEnv):
        def step(self, action):
            *rest, info = super().step(action)
            return *rest, {"stage": info["stage"]}

    with pytest.raises(ConfigError, match="is_success"):
        list(run_episodes(expert_policy(), lambda: Mute(**short_task.env_kwargs), SEEDS[:1], parallel_envs=1))


def test_an_environment_that_does_not_exist_is_one_sentence(task):
    from dataclasses import replace

    with pytest.raises(ConfigError, match="roboimi/NoSuchTask-v0"):
        env_factory(replace(task, env_id="roboimi/NoSuchTask-v0"))()
    with pytest.raises(ConfigError, match="no_such_option"):
        env_factory(replace(task, env_kwargs={"no_such_option": 1}))()


def test_noise_belongs_to_seed_and_chunk():
    shape = (16, 14)
    one = chunk_noise(ChunkRequest(5, 0), shape)
    np.testing.assert_array_equal(one, chunk_noise(ChunkRequest(5, 0), shape))
    for other in (ChunkRequest(5, 1), ChunkRequest(6, 0), ChunkRequest(0, 5)):
        assert abs(np.corrcoef(one.ravel(), chunk_noise(other, shape).ravel())[0, 1]) < 0.3
    many = np.stack([chunk_noise(ChunkRequest(seed, 0), shape) for seed in range(200)])
    assert abs(many.mean()) < 0.02
    assert many.std() == pytest.approx(1, abs=0.02)
    assert one.dtype == np.float32


def test_the_real_task_is_a_gymnasium_environment(task):
    env = env_factory(task)()
    assert isinstance(env, gymnasium.Env)
    env.close()
