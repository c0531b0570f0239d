"""Filmstrips show the episode that was recorded, or none."""

from io import BytesIO
from itertools import pairwise

import gymnasium
import numpy as np
import pytest
from PIL import Image

from roboimi.errors import DataError
from roboimi.vla.rollouts.filmstrip import FRAME_WIDTH, FRAMES, GAP, replay, write_filmstrips
from roboimi.vla.rollouts.records import EpisodeLog, read_actions
from roboimi.vla.rollouts.rollout import run_episodes
from roboimi.vla.rollouts.task_env import env_factory

SEEDS = [100_000, 100_001]


@pytest.fixture
def recorded(tmp_path, task, expert_policy):
    """A folder with one success and one failure, and their lines."""
    policy = expert_policy(clumsy=SEEDS[1:])
    with EpisodeLog(tmp_path, SEEDS) as log:
        for outcome in run_episodes(policy, env_factory(task), SEEDS, parallel_envs=2):
            log.write(outcome)
        return tmp_path, [log.lines[seed] for seed in SEEDS]


def test_a_success_and_a_failure_are_shown(recorded, task):
    folder, lines = recorded
    strips = write_filmstrips(folder, lines, env_factory(task), task.cameras[0], task.control_hz)
    assert {kind: strip["seed"] for kind, strip in strips.items()} == {"success": SEEDS[0], "failure": SEEDS[1]}
    for strip in strips.values():
        data = (folder / strip["file"]).read_bytes()
        picture = Image.open(BytesIO(data))
        assert picture.format == "WEBP"
        assert picture.width == FRAMES * (FRAME_WIDTH + GAP) - GAP
        assert len(data) < 200_000


def test_frames_span_the_episode_and_say_what_was_reached(recorded, task):
    folder, (line, _) = recorded
    env = env_factory(task)()
    frames = replay(env, line, read_actions(folder, line), task.cameras[0], task.control_hz)
    env.close()
    assert len(frames) == FRAMES
    assert frames[0].label == "0.0 s · stage 0"
    assert frames[-1].label == f"{line['steps'] / task.control_hz:.1f} s · stage 4"
    different = [np.abs(one.picture.astype(int) - two.picture).mean() for one, two in pairwise(frames)]
    assert min(different) > 0.1  # the arms moved between any two pictures


def test_a_replay_that_ends_otherwise_is_not_shown(recorded, task):
    folder, (line, _) = recorded
    strips = write_filmstrips(
        folder, [{**line, "outcome": "failure"}], env_factory(task), task.cameras[0], task.control_hz
    )
    assert "file" not in strips["failure"]
    assert "did not end as recorded" in strips["failure"]["reason"]
    assert not (folder / "filmstrip_failure.webp").exists()


def test_a_replay_that_does_not_reach_the_end_is_refused(recorded, task):
    folder, (line, _) = recorded
    actions = read_actions(folder, line)
    env = env_factory(task)()
    with pytest.raises(DataError, match="did not end as recorded"):
        replay(env, line, actions[:-5], task.cameras[0], task.control_hz)
    env.close()


def test_unknown_episodes_are_not_shown(recorded, task):
    folder, (line, _) = recorded
    lines = [{**line, "outcome": "unknown"}]
    assert write_filmstrips(folder, lines, env_factory(task), task.cameras[0], task.control_hz) == {}


def test_an_environment_that_cannot_be_seen_has_no_strips(recorded, task):
    class Unseen(gymnasium.Env):
        pass

    folder, lines = recorded
    assert write_filmstrips(folder, lines, Unseen, task.cameras[0], task.control_hz) == {}
