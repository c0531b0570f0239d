"""The environment a task's rollouts run in, and the check that a policy fits it.

Any Gymnasium environment serves that observes `{"agent_pos": (S,), "environment_state": (E,)}` (the second only where a
policy needs it), takes (A,) actions and puts `is_success` into `info`. For policies that see it has
`render_cameras(names) -> {name: (H, W, 3) uint8}`, which renders only when it is called, or it observes
`pixels: {name: (H, W, 3) uint8}` at every step, as those of LeRobot do. An id may name the module that registers it, as
in `gym_aloha:gym_aloha/AlohaTransferCube-v0`.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np

from roboimi.errors import ConfigError
from roboimi.vla.config import TaskConfig

STATE_KEY = "agent_pos"
PIXELS_KEY = "pixels"
ENVIRONMENT_STATE_KEY = "environment_state"

EnvFactory = Callable[[], gymnasium.Env]


@dataclass(frozen=True)
class ObservationView:
    """What a policy reads at each decision.

    Attributes:
        obs_horizon: To.
        needs: `images`, `environment_state`, or nothing (the empty string).
        cameras: the V views, in the order of the view axis.
        image_shape: (height, width) in pixels that frames are resized to before the encoder sees them.
    """

    obs_horizon: int
    needs: str
    cameras: tuple[str, ...]
    image_shape: tuple[int, int] = (256, 256)

    @property
    def renders(self) -> bool:
        """Whether frames have to be rendered at all."""
        return self.needs == "images"


def env_factory(task: TaskConfig) -> EnvFactory:
    """A function that makes one environment of the task.

    `control_hz` goes to environments that take it; others run at a rate of their own, which must be the task's.
    Gymnasium's passive checker is left out: it costs time at every first step and only warns.
    """
    importlib.import_module("roboimi.envs")

    def make() -> gymnasium.Env:
        kwargs = dict(task.env_kwargs)
        try:
            if _takes(task.env_id, "control_hz"):
                kwargs["control_hz"] = task.control_hz
            env = gymnasium.make(task.env_id, disable_env_checker=True, **kwargs)
        except (gymnasium.error.Error, ImportError, TypeError) as error:
            raise ConfigError(
                f"Environment {task.env_id!r} cannot be made with {kwargs} ({' '.join(str(error).split())}): "
                "check task.env_id and task.env_kwargs."
            ) from error
        rate = env.metadata.get("render_fps")
        if rate and rate != task.control_hz:
            env.close()
            raise ConfigError(
                f"{task.env_id} runs at {rate} Hz and the task {task.name!r} at control_hz={task.control_hz}: "
                "set task.control_hz to the environment's rate, at which the demonstrations must be too."
            )
        return env

    return make


def _takes(env_id: str, name: str) -> bool:
    """Whether the environment's constructor has this parameter."""
    module, _, plain = env_id.rpartition(":")
    if module:
        importlib.import_module(module)
    creator = gymnasium.spec(plain).entry_point
    if isinstance(creator, str):
        creator = gymnasium.envs.registration.load_env_creator(creator)
    return name in inspect.signature(creator).parameters


def check_environment(env: gymnasium.Env, task: TaskConfig, view: ObservationView, *, renders: bool = False) -> None:
    """Make sure before the first episode that the environment is what the task says, and that it can be seen.

    Args:
        env: a fresh environment; it is reset.
        task: what it should be.
        view: what the policy reads.
        renders: whether frames will be rendered even if the policy reads none, as for filmstrips.

    Raises:
        ConfigError: dimensions, keys or cameras differ.
        RenderError: there is no GL to render with.
    """
    observation, _ = env.reset(seed=0)
    _require_width(task, observation, STATE_KEY, task.state_dim)
    if view.needs == ENVIRONMENT_STATE_KEY:
        _require_width(task, observation, ENVIRONMENT_STATE_KEY, task.environment_state_dim)
    if env.action_space.shape != (task.action_dim,):
        raise ConfigError(
            f"{task.env_id} takes actions of shape {env.action_space.shape}, the task {task.name!r} has "
            f"action_dim={task.action_dim}: change task.action_dim."
        )
    if view.renders or (renders and can_render(env)):
        render_frames(env, view.cameras if view.renders else view.cameras[:1], observation)


def can_render(env: gymnasium.Env) -> bool:
    """Whether the environment can show itself through named cameras at all."""
    spaces = getattr(env.observation_space, "spaces", {})
    return hasattr(env.unwrapped, "render_cameras") or PIXELS_KEY in spaces


def render_frames(
    env: gymnasium.Env, cameras: tuple[str, ...], observation: Mapping[str, Any] | None = None
) -> list[np.ndarray]:
    """One (H, W, 3) uint8 frame per camera, in their order.

    Args:
        env: rendered now, where it can be.
        cameras: which to look through.
        observation: the newest one; its `pixels` serve where the environment renders at every step anyway.

    Raises:
        ConfigError: the environment renders nothing of that kind, or not a camera of that name.
        RenderError: there is no GL to render with.
    """
    if hasattr(env.unwrapped, "render_cameras"):
        frames = env.unwrapped.render_cameras(cameras)
        return [frames[name] for name in cameras]
    pixels = (observation or {}).get(PIXELS_KEY)
    if not isinstance(pixels, Mapping):
        raise ConfigError(
            f"{type(env.unwrapped).__name__} has neither render_cameras(names) nor observed pixels by camera name, "
            "which a policy that sees needs: add one to the environment, or evaluate a policy without images."
        )
    if missing := [name for name in cameras if name not in pixels]:
        raise ConfigError(f"{type(env.unwrapped).__name__} has no camera {missing[0]!r}: choose among {list(pixels)}.")
    return [pixels[name] for name in cameras]


def _require_width(task: TaskConfig, observation: Mapping[str, np.ndarray], key: str, width: int) -> None:
    if key not in observation:
        raise ConfigError(
            f"{task.env_id} observes {sorted(observation)} but the policy reads {key!r}: choose a task that has it."
        )
    found = np.shape(observation[key])
    if found != (width,):
        raise ConfigError(
            f"{task.env_id} observes {key!r} of shape {found}, the task {task.name!r} says ({width},): "
            "evaluate in the environment that the policy was trained for, or change the task."
        )
