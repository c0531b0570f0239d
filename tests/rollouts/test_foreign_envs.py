"""Environments of others, by their id: gym-aloha's own runs in a worker, and what does not fit is one sentence."""

import importlib.util

import numpy as np
import pytest

from roboimi.errors import ConfigError
from roboimi.vla.config import TaskConfig
from roboimi.vla.rollouts.agent_policy import AgentPolicy
from roboimi.vla.rollouts.task_env import env_factory
from roboimi.vla.rollouts.worker_pool import WorkerPool

ALOHA = "gym_aloha:gym_aloha/AlohaTransferCube-v0"
has_dm_control = importlib.util.find_spec("dm_control") is not None


def aloha_task(**changes) -> TaskConfig:
    """gym-aloha as its authors registered it: 50 Hz, one camera, frames of its own size at every step."""
    values = {
        "name": "aloha",
        "env_id": ALOHA,
        "control_hz": 50,
        "cameras": ("top",),
        "num_views": 1,
        "state_dim": 14,
        "action_dim": 14,
        "environment_state_dim": 0,
        "env_kwargs": {"obs_type": "pixels_agent_pos", "max_episode_steps": 3},
    }
    return TaskConfig(**(values | changes))


@pytest.mark.oracle
@pytest.mark.skipif(
    not has_dm_control, reason="gym_aloha's environments need dm-control: install requirements/oracle.lock"
)
def test_gym_alohas_own_environment_is_rolled_out_by_its_id(tiny_agent):
    """One view, three steps: it renders three frames of 640 x 480 at each of them, which takes most of a second."""
    task = aloha_task()
    agent = tiny_agent("siglip2_diffusion", "num_views=1", "num_action_steps=2", "task=transfer_cube")
    seen = []
    agent.vision_backbone.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]["images"]))
    pool = WorkerPool(AgentPolicy(agent, task.cameras), task, workers=1)
    (outcome,) = pool.run([3])
    assert (outcome.outcome, outcome.steps, outcome.chunks) == ("failure", 3, 2)
    assert outcome.frame_size == (480, 640)
    assert [images.shape for images in seen] == [(1, 2, 1, 256, 256, 3)] * 2
    assert seen[0].float().std() > 10  # a picture, not a black frame
    assert not np.array_equal(seen[0], seen[1])
    assert pool.renderer


@pytest.mark.skipif(
    not has_dm_control, reason="gym_aloha's environments need dm-control: install requirements/oracle.lock"
)
@pytest.mark.filterwarnings("ignore::UserWarning")  # GLFW, which dm-control tries first, says that there is no display
def test_another_rate_than_the_tasks_is_refused():
    with pytest.raises(ConfigError, match=r"runs at 50 Hz and the task 'aloha' at control_hz=25"):
        env_factory(aloha_task(control_hz=25))()


@pytest.mark.parametrize(
    ("env_id", "says"),
    [
        ("gym_aloha:gym_aloha/NoSuchCube-v0", "NoSuchCube"),
        ("no_such_package:Cube-v0", "no_such_package"),
        ("roboimi/TransferCub-v0", "TransferCub"),
        ("not an id", "not an id"),
    ],
)
def test_an_id_that_nobody_registered_is_one_sentence(env_id, says):
    with pytest.raises(ConfigError, match=says) as caught:
        env_factory(aloha_task(env_id=env_id))()
    assert "check task.env_id" in str(caught.value)
    assert "\n" not in str(caught.value)
