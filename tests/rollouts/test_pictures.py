"""Filmstrips and videos show the episode that was recorded, or none; what they say is burned in."""

from io import BytesIO
from itertools import pairwise

import gymnasium
import numpy as np
import pytest
from PIL import Image

from roboimi.errors import DataError
from roboimi.vla.rollouts.filmstrip import FRAME_WIDTH, FRAMES, GAP, compose_strip
from roboimi.vla.rollouts.pictures import draw, draw_pictures, in_turn
from roboimi.vla.rollouts.records import EpisodeLog, read_actions
from roboimi.vla.rollouts.replay import PATH_COLOURS, Moment, replay, spread
from roboimi.vla.rollouts.rollout import run_episodes
from roboimi.vla.rollouts.task_env import env_factory
from roboimi.vla.rollouts.video import BAR_HEIGHT, WIDTH, compose_picture

SEEDS = [100_000, 100_001]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory, task, expert):
    """A folder with one success and one failure, and their lines."""
    folder = tmp_path_factory.mktemp("recorded")
    with EpisodeLog(folder, SEEDS) as log:
        for outcome in run_episodes(expert(clumsy=SEEDS[1:]), env_factory(task), SEEDS, parallel_envs=2):
            log.write(outcome)
        log.finish()
        return folder, [log.lines[seed] for seed in SEEDS]


@pytest.fixture(scope="module")
def drawn(recorded, task):
    folder, lines = recorded
    return draw_pictures(folder, lines, task, filmstrips=True, videos=1)


def test_a_success_and_a_failure_are_shown(recorded, drawn):
    folder, _ = recorded
    assert {kind: strip["seed"] for kind, strip in drawn.filmstrips.items()} == {
        "success": SEEDS[0],
        "failure": SEEDS[1],
    }
    for strip in drawn.filmstrips.values():
        data = (folder / strip["file"]).read_bytes()
        picture = Image.open(BytesIO(data))
        assert picture.format == "WEBP"
        assert picture.width == FRAMES * (FRAME_WIDTH + GAP) - GAP
        assert len(data) < 200_000


def test_a_video_has_every_step_in_real_time_and_plays_in_a_browser(recorded, drawn, task):
    imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")
    folder, (line, _) = recorded
    (video,) = drawn.videos
    assert (video["seed"], video["outcome"]) == (SEEDS[0], "success")
    path = folder / video["file"]
    data = path.read_bytes()
    assert data[4:8] == b"ftyp"
    assert data.index(b"moov") < data.index(b"mdat")  # a browser can start before it has all
    assert len(data) < 1_000_000
    reader = imageio_ffmpeg.read_frames(str(path))
    facts = next(reader)
    frames = [np.frombuffer(frame, np.uint8) for frame in reader]
    assert facts["codec"] == "h264"
    assert "yuv420p" in facts["pix_fmt"]
    assert facts["fps"] == task.control_hz
    assert facts["size"] == (WIDTH, WIDTH + BAR_HEIGHT)
    assert len(frames) == line["steps"] + 1 + task.control_hz


def test_seed_outcome_and_step_are_burned_in():
    moment = Moment(np.zeros((320, 320, 3), np.uint8), step=3, seconds=0.1, stage=2)
    line = {"seed": 5, "outcome": "success", "steps": 9}
    bar = compose_picture(moment, line)[:BAR_HEIGHT]
    for other in ({"seed": 6}, {"outcome": "failure"}, {"steps": 10}):
        assert not np.array_equal(bar, compose_picture(moment, line | other)[:BAR_HEIGHT])
    later = Moment(moment.picture, step=4, seconds=0.1, stage=2)
    assert not np.array_equal(bar, compose_picture(later, line)[:BAR_HEIGHT])


def test_frames_span_the_episode_and_say_what_was_reached(recorded, task):
    folder, (line, _) = recorded
    env = env_factory(task)()
    actions = read_actions(folder, line)
    moments = replay(env, line, actions, task.cameras[0], task.control_hz, spread(line["steps"], FRAMES))
    env.close()
    assert len(moments) == FRAMES
    assert moments[0].label == "0.0 s · stage 0"
    assert moments[-1].label == f"{line['steps'] / task.control_hz:.1f} s · stage 4"
    different = [np.abs(one.picture.astype(int) - two.picture).mean() for one, two in pairwise(moments)]
    assert min(different) > 0.1  # the arms moved between any two pictures
    for colour in PATH_COLOURS:  # the grippers' paths grow
        drawn = [(np.abs(moment.picture.astype(int) - colour).sum(axis=2) < 12).sum() for moment in moments]
        assert drawn[0] == 0
        assert drawn[-1] > drawn[5] > 0
    assert compose_strip(moments)[:4] == b"RIFF"


def test_a_replay_that_ends_otherwise_is_not_shown(recorded, task, tmp_path):
    folder, (line, _) = recorded
    (tmp_path / "actions.f32").write_bytes((folder / "actions.f32").read_bytes())
    lines = [{**line, "outcome": "failure"}]
    pictures = draw(tmp_path, lines, task, env_factory(task), filmstrips=True, videos=1)
    for picture in (pictures.filmstrips["failure"], pictures.videos[0]):
        assert "file" not in picture
        assert "did not end as recorded" in picture["reason"]
    assert [path.name for path in tmp_path.iterdir()] == ["actions.f32"]


def test_a_replay_that_does_not_reach_the_end_is_refused(recorded, task):
    folder, (line, _) = recorded
    actions = read_actions(folder, line)
    env = env_factory(task)()
    with pytest.raises(DataError, match="did not end as recorded"):
        replay(env, line, actions[:-5], task.cameras[0], task.control_hz, [0])
    env.close()


def test_unknown_episodes_are_not_shown(recorded, task):
    folder, (line, _) = recorded
    lines = [{**line, "outcome": "unknown"}]
    pictures = draw(folder, lines, task, env_factory(task), filmstrips=True, videos=2)
    assert (pictures.filmstrips, pictures.videos) == ({}, [])


def test_an_environment_that_cannot_be_seen_has_no_pictures(recorded, task):
    class Unseen(gymnasium.Env):
        observation_space = gymnasium.spaces.Dict({})

    folder, lines = recorded
    pictures = draw(folder, lines, task, Unseen, filmstrips=True, videos=2)
    assert (pictures.filmstrips, pictures.videos) == ({}, [])


def test_videos_are_of_successes_and_failures_in_turn():
    lines = [{"seed": seed, "outcome": kind} for seed, kind in enumerate(["success"] * 3 + ["failure", "unknown"])]
    assert [line["seed"] for line in in_turn(lines, 3)] == [0, 3, 1]
    assert [line["seed"] for line in in_turn(lines, 9)] == [0, 3, 1, 2]
    assert in_turn(lines, 0) == []
