"""Worker processes: their number changes no byte of an episode, and what hangs or dies is unknown, never a failure."""

import json
import multiprocessing
import os
import signal
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from roboimi.cores import usable_cores
from roboimi.errors import ConfigError, PolicyOutputError, RenderError
from roboimi.vla.config import EvalConfig, TaskConfig
from roboimi.vla.eval_vla import evaluate
from roboimi.vla.rollouts import agent_policy
from roboimi.vla.rollouts.agent_policy import AgentPolicy
from roboimi.vla.rollouts.eval_run import EvalRun
from roboimi.vla.rollouts.rollout import ChunkRequest, run_episodes
from roboimi.vla.rollouts.task_env import ObservationView, env_factory
from roboimi.vla.rollouts.worker_pool import Deadlines, RolloutsHang, WorkerPool, default_workers

SEEDS = [100_000, 100_001, 100_002, 100_003]
QUICK = Deadlines(step_s=2.0, episode_s=60)


class SmallPolicy:
    """Actions from the state and the seed; success on even seeds. Notes from which thread it is asked, and for what."""

    pred_horizon, num_action_steps = 6, 4
    view = ObservationView(2, "", ("front",))
    encode_seconds = 0.0

    def __init__(self):
        self.threads, self.batches = set(), []

    def predict(self, batch, requests):
        self.threads.add((os.getpid(), threading.get_ident()))
        self.batches.append([(request.seed, request.index) for request in requests])
        signs = np.array([1.0 if request.seed % 2 == 0 else -1.0 for request in requests])
        return np.broadcast_to(signs[:, None, None] * (0.1 + batch["state"][:, -1:, :]), (len(requests), 6, 2)).copy()


def faulty_task(name: str = "Plain", **env_kwargs) -> TaskConfig:
    return TaskConfig(
        name="faulty",
        env_id=f"tests.rollouts.faulty_envs:faulty/{name}-v0",
        control_hz=10,
        cameras=("front",),
        state_dim=2,
        action_dim=2,
        environment_state_dim=0,
        num_views=1,
        env_kwargs=env_kwargs,
    )


def run(policy, task, workers, seeds=SEEDS, deadlines=QUICK):
    pool = WorkerPool(policy, task, workers=workers, deadlines=deadlines)
    return {outcome.seed: outcome for outcome in pool.run(seeds)}, pool


def no_child_is_left() -> bool:
    return not multiprocessing.active_children()


def without_timing(folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "episodes.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "timing"} for line in lines]


def test_one_worker_and_four_write_the_same_bytes(trained):
    """Image policy, real task, more seeds than workers: only `timing` may differ, and the pool's size is in no key."""
    store, checkpoint = trained("siglip2_diffusion", time_limit_s=0.4)
    written = {}
    for workers in (1, 4):
        settings = EvalConfig(episodes=5, workers=workers)
        run = EvalRun.from_store(store, checkpoint, settings, filmstrips=False)
        run = replace(run, policy_digest=f"the same policy, another key {workers}")
        folder = store.fetch(evaluate(run, store=store).rollouts)
        lines = [line | {"policy_digest": ""} for line in without_timing(folder)]
        written[workers] = (lines, (folder / "actions.f32").read_bytes())
        assert [line["seed"] for line in lines] == list(settings.seeds)
        assert not list(folder.glob("running.*"))
    assert written[1] == written[4]
    assert len(written[1][1]) == 5 * 10 * 14 * 4
    assert no_child_is_left()


def test_workers_render_with_a_context_of_their_own_and_say_with_what(trained):
    store, checkpoint = trained("siglip2_diffusion", time_limit_s=0.2)
    run = EvalRun.from_store(store, checkpoint, EvalConfig(episodes=1, workers=1), filmstrips=False)
    document = store.committed(evaluate(run, store=store).rollouts, "RESULT.json")
    assert document["renderer"]
    assert document["workers"] == {"asked": 1, "left": 1, "hung": 0, "died": 0}


def test_a_chunk_does_not_depend_on_its_place_or_company(task, tiny_agent):
    agent = tiny_agent("siglip2_diffusion")
    policy = AgentPolicy(agent, task.cameras)
    rng = np.random.default_rng(0)
    batch = {
        "state": rng.normal(0, 0.3, (5, 2, 14)).astype(np.float32),
        "images": rng.integers(0, 256, (5, 2, 3, 256, 256, 3), dtype=np.uint8),
    }
    requests = [request_of(seed) for seed in range(5)]
    together = policy.predict(batch, requests)
    for row in range(5):
        alone = policy.predict({name: values[row : row + 1] for name, values in batch.items()}, [requests[row]])
        np.testing.assert_array_equal(alone[0], together[row])
    order = [3, 0, 4, 1, 2]
    shuffled = policy.predict({name: values[order] for name, values in batch.items()}, [requests[i] for i in order])
    np.testing.assert_array_equal(shuffled, together[order])


def test_every_pass_has_one_shape_and_filling_it_up_changes_nothing(task, tiny_agent, monkeypatch):
    monkeypatch.setitem(agent_policy.ROWS_PER_PASS, "cpu", 4)
    agent, shapes = tiny_agent("privileged_state"), []
    agent.vision_backbone.register_forward_pre_hook(lambda module, inputs: shapes.append(len(inputs[0]["state"])))
    policy = AgentPolicy(agent, task.cameras)
    rng = np.random.default_rng(0)
    batch = {
        "state": rng.normal(0, 0.3, (6, 2, 14)).astype(np.float32),
        "environment_state": rng.normal(0, 0.3, (6, 2, 7)).astype(np.float32),
    }
    requests = [request_of(seed) for seed in range(6)]
    together = policy.predict(batch, requests)
    assert shapes == [4, 4]
    assert together.shape[0] == 6
    alone = policy.predict({name: values[5:] for name, values in batch.items()}, requests[5:])
    np.testing.assert_array_equal(alone[0], together[5])
    assert policy.encode_seconds > 0


def request_of(seed):
    return ChunkRequest(seed, 0)


def test_the_policy_is_asked_by_one_thread_of_one_process():
    policy = SmallPolicy()
    outcomes, _ = run(policy, faulty_task(), workers=3)
    assert policy.threads == {(os.getpid(), threading.get_ident())}
    assert {seed: outcome.outcome for seed, outcome in outcomes.items()} == {
        seed: "success" if seed % 2 == 0 else "failure" for seed in SEEDS
    }
    asked = sorted(request for batch in policy.batches for request in batch)
    assert asked == [(seed, index) for seed in SEEDS for index in range(3)]  # 12 steps in slices of 4, none twice


def test_workers_and_this_process_run_the_same_episodes():
    outcomes, _ = run(SmallPolicy(), faulty_task(), workers=2)
    here = {o.seed: o for o in run_episodes(SmallPolicy(), env_factory(faulty_task()), SEEDS, parallel_envs=3)}
    for seed in SEEDS:
        assert outcomes[seed] == here[seed]
        np.testing.assert_array_equal(outcomes[seed].actions, here[seed].actions)


def test_a_worker_that_is_lost_costs_its_episode_and_nothing_else():
    """Stopped, dead, in an endless loop, and an exception; whoever comes after each of them is as good as new."""
    faults = {100_001: "stop", 100_003: "kill", 100_005: "raise", 100_007: "loop"}
    outcomes, pool = run(SmallPolicy(), faulty_task(faults=faults), workers=1, seeds=range(100_000, 100_010))
    reasons = {seed: outcome.reason for seed, outcome in outcomes.items() if outcome.outcome == "unknown"}
    hung = "its worker hung: no control step was finished within 2 s"
    assert reasons == {
        100_001: hung,
        100_003: "its worker died (signal 9)",
        100_005: "RuntimeError: the solver gave up",
        100_007: hung,
    }
    assert (pool.hangs, pool.deaths) == (2, 1)
    known = {seed: outcome.outcome for seed, outcome in outcomes.items() if seed not in faults}
    assert known == {seed: "success" if seed % 2 == 0 else "failure" for seed in known}
    assert len(known) == 6
    assert no_child_is_left()


def test_an_episode_that_takes_too_long_is_unknown():
    deadlines = Deadlines(step_s=30, episode_s=1.0)
    outcomes, _ = run(SmallPolicy(), faulty_task(faults={100_000: "loop"}), 1, SEEDS[:2], deadlines)
    assert outcomes[100_000].reason == "the episode took longer than 1 s"
    assert outcomes[100_001].outcome == "failure"


def test_repeated_hangs_lead_down_a_ladder_of_fewer_workers():
    task = faulty_task(faults=dict.fromkeys(SEEDS[:2], "stop"))
    outcomes, pool = run(SmallPolicy(), task, workers=2, seeds=range(100_000, 100_006))
    assert (pool.hangs, pool.workers) == (2, 1)
    assert [outcomes[seed].outcome for seed in SEEDS[:2]] == ["unknown"] * 2
    assert {outcomes[seed].outcome for seed in range(100_002, 100_006)} == {"success", "failure"}


def test_a_single_worker_that_hangs_again_and_again_ends_the_evaluation():
    task = faulty_task(faults=dict.fromkeys(SEEDS, "stop"))
    with pytest.raises(RolloutsHang, match=r"lost 3 workers in a row.*hung"):
        run(SmallPolicy(), task, workers=1, deadlines=Deadlines(1.0, 60))
    assert no_child_is_left()


def test_workers_that_die_before_they_are_ready_end_the_evaluation():
    with pytest.raises(RolloutsHang, match=r"died \(signal 9\)"):
        run(SmallPolicy(), faulty_task("NeverMade"), workers=1)


def test_unknown_episodes_are_in_no_rate_and_run_again(trained, monkeypatch):
    """A worker killed from outside in the middle of an episode: counted apart, and not found finished the next time."""
    store, checkpoint = trained("blind", time_limit_s=0.4)
    run = EvalRun.from_store(store, checkpoint, EvalConfig(episodes=3, workers=1), filmstrips=False)
    killed = []

    original = AgentPolicy.predict

    def predict(self, batch, requests):
        if not killed and requests[0].index == 1:
            (child,) = multiprocessing.active_children()
            os.kill(child.pid, signal.SIGKILL)
            killed.append(requests[0].seed)
        return original(self, batch, requests)

    monkeypatch.setattr(AgentPolicy, "predict", predict)
    result = evaluate(run, store=store)
    assert (result.episodes, result.unknown) == (2, 1)
    lines = without_timing(store.fetch(result.rollouts))
    assert [line["outcome"] for line in lines].count("unknown") == 1
    assert next(line for line in lines if line["outcome"] == "unknown")["seed"] == killed[0]


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"state_dim": 3}, ConfigError, r"'agent_pos' of shape \(2,\)"),
        ({"env_id": "roboimi/NoSuchTask-v0"}, ConfigError, "roboimi/NoSuchTask-v0"),
    ],
)
def test_what_cannot_work_is_said_by_the_first_worker_before_any_episode(changes, error, says):
    policy = SmallPolicy()
    with pytest.raises(error, match=says):
        run(policy, replace(faulty_task(), **changes), workers=1)
    assert policy.batches == []
    assert no_child_is_left()


def test_no_gl_is_one_sentence(task, tiny_agent, monkeypatch):
    monkeypatch.setenv("__EGL_VENDOR_LIBRARY_FILENAMES", "/nonexistent")
    policy = AgentPolicy(tiny_agent("siglip2_diffusion"), task.cameras)
    with pytest.raises(RenderError, match="No OpenGL context"):
        run(policy, task, workers=1)


def test_a_policy_that_gives_nan_ends_it_and_leaves_no_worker():
    class Broken(SmallPolicy):
        def predict(self, batch, requests):
            return super().predict(batch, requests) * np.nan

    with pytest.raises(PolicyOutputError, match="chunk 0 of seed"):
        run(Broken(), faulty_task(), workers=1)
    assert no_child_is_left()


def test_cores_or_the_share_of_them_say_how_many_workers(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert default_workers() == 3
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert default_workers() == usable_cores()
