"""Preflight of a GPU node: two minutes that tell, before days of training, that the node is what it should be.

Each check has its own failure class, so that a record tells whether the image, the driver or the node is to blame.
"""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from roboimi.errors import PolicyOutputError, RenderError, RoboimiError
from roboimi.storage.launch_record import code_revision
from roboimi.vla.config import TrainRun
from roboimi.vla.data.manifest import DatasetRef

POLICY_STEPS = 8


class NoCudaError(RoboimiError):
    """The node gives this process no CUDA device."""

    exit_code = 15
    failure_class = "no-cuda"
    retryable = True


class SoftwareRendererError(RenderError):
    """GL works, but on the CPU."""

    failure_class = "software-gl"
    retryable = True


class CodeRevisionError(RoboimiError):
    """The image holds other code than the campaign was submitted with."""

    exit_code = 16
    failure_class = "code-revision"


def preflight(
    ref: DatasetRef, encoder: str, overrides: Sequence[str], expected_revision: str, *, require_gpu: bool = True
) -> dict[str, Any]:
    """Run all checks on this node.

    Args:
        ref: the dataset; gives the policy its statistics' width.
        encoder: name of the vision tower.
        overrides: Hydra overrides that all arms share.
        expected_revision: git revision the campaign was submitted with; empty: not checked.
        require_gpu: whether a node without CUDA, or with a renderer in software, fails; else it is only named.

    Returns:
        `device`, `renderer`, `steps`, `seconds_per_step`, `revision`.

    Raises:
        CodeRevisionError, NoCudaError, SoftwareRendererError, RenderError, EncoderError, ConfigError,
        PolicyOutputError:
            what is wrong; the cheapest check comes first.
    """
    from roboimi.envs.render import gl_renderer

    revision = check_revision(expected_revision, code_revision())
    device = check_cuda() if require_gpu else "cpu (no GPU asked for)"
    renderer = check_renderer(gl_renderer()) if require_gpu else gl_renderer()
    run = TrainRun.from_overrides(overrides, dataset=ref.text, encoder=encoder)
    seconds = run_policy_steps(run, ref, device="cuda" if require_gpu else "cpu")
    return {
        "device": device,
        "renderer": renderer,
        "steps": POLICY_STEPS,
        "seconds_per_step": seconds,
        "revision": revision,
    }


def check_revision(expected: str, found: str | None) -> str | None:
    """The revision that runs, once it is the expected one.

    Raises:
        CodeRevisionError: it is not.
    """
    if expected and found != expected:
        raise CodeRevisionError(
            f"This image holds the code revision {found or 'unknown'} and the campaign was submitted with {expected}: "
            "build and push the image of that revision, or submit from the image's."
        )
    return found


def check_cuda() -> str:
    """The name of the first CUDA device, once a computation on it gave the right answer.

    Raises:
        NoCudaError: there is none, or it does not compute.
    """
    import torch

    if not torch.cuda.is_available():
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "a CPU-only build"
        raise NoCudaError(
            f"torch {torch.__version__} ({built}) finds no CUDA device on this node: check the pod's GPU limit, the "
            "device plugin and the driver."
        )
    try:
        ones = torch.ones(256, 256, device="cuda")
        right = bool((ones @ ones == 256).all())
    except RuntimeError as error:
        raise NoCudaError(f"CUDA does not compute ({str(error).splitlines()[0]}): check driver and image.") from error
    if not right:
        raise NoCudaError("CUDA computes wrong sums on this node: take the node out of service.")
    return torch.cuda.get_device_name(0)


def check_renderer(renderer: str) -> str:
    """The GL renderer, once it is not a CPU's.

    Raises:
        SoftwareRendererError: frames would be drawn by the CPU, many times slower.
    """
    from roboimi.envs.render import is_software_renderer

    if is_software_renderer(renderer):
        raise SoftwareRendererError(
            f"GL renders in software here ({renderer}): give the container the graphics capability of the NVIDIA "
            "runtime (NVIDIA_DRIVER_CAPABILITIES=all) and MUJOCO_GL=egl."
        )
    return renderer


def run_policy_steps(run: TrainRun, ref: DatasetRef, device: str) -> float:
    """Let an untrained policy act for `POLICY_STEPS` control steps in the task, images and all.

    Args:
        run: what the arms share.
        ref: the dataset, whose statistics the policy normalises with.
        device: `cuda`, or `cpu`.

    Returns:
        Seconds per control step, rendering and prediction included.

    Raises:
        PolicyOutputError: its actions are no actions, or the environment breaks.
        ConfigError, EncoderError, RenderError: something does not fit or is not there.
    """
    from roboimi.vla.build import build_agent
    from roboimi.vla.data.statistics import compute_statistics
    from roboimi.vla.models.encoder import load_vision_model
    from roboimi.vla.rollouts.agent_policy import AgentPolicy, check_dims, evaluating
    from roboimi.vla.rollouts.episode import UNKNOWN, EpisodeSlot
    from roboimi.vla.rollouts.rollout import ChunkRequest
    from roboimi.vla.rollouts.task_env import env_factory

    tower = load_vision_model(run.encoder) if run.needs == "images" else None
    agent = build_agent(run.config, vision_model=tower, statistics=compute_statistics(ref)).to(device)
    check_dims(agent, run.task)
    policy = AgentPolicy(agent, run.task.cameras)
    slot = EpisodeSlot(
        env_factory(run.task), policy.view, pred_horizon=policy.pred_horizon, num_action_steps=policy.num_action_steps
    )
    done, started = 0, time.monotonic()
    try:
        slot.start(seed=0)
        with evaluating(agent):
            while slot.outcome is None and done < POLICY_STEPS:
                batch = {name: value[None] for name, value in slot.observation().items()}
                chunk = policy.predict(batch, [ChunkRequest(slot.seed, slot.chunks)])[0]
                if not np.isfinite(chunk).all():
                    raise PolicyOutputError("An untrained policy gives actions that are not finite: check precision.")
                slot.execute(chunk, latency_ms=0.0)
                done += policy.num_action_steps
    finally:
        slot.close()
    if slot.outcome is not None and slot.outcome.outcome == UNKNOWN:
        raise PolicyOutputError(f"The policy could not act in {run.task.env_id}: {slot.outcome.reason}.")
    return (time.monotonic() - started) / done
