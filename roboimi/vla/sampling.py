"""From noise to a chunk: the samplers that belong to the objectives.

Nothing is clamped between steps: that would leave the trajectory on which u was trained.
"""

import torch
from torch import Tensor

from roboimi.vla.objectives import Head, ObjectiveConfig, clean_chunk


def sample(head: Head, noise: Tensor, cond: Tensor, config: ObjectiveConfig, num_inference_steps: int = 1) -> Tensor:
    """Draw chunks.

    Args:
        head: u(z, r, t, cond).
        noise: (B, T, A) standard normal; `regression` and `mip` read only its shape.
        cond: (B, To, C).
        config: the objective that the network was trained with.
        num_inference_steps: network evaluations of `imf`, `meanflow` and `flow`; `regression` takes 1 and `mip` 2.

    Returns:
        (B, T, A), normalised units.
    """
    if config.name == "regression":
        return clean_chunk(head, torch.zeros_like(noise), 1.0, cond)
    if config.name == "mip":
        first = clean_chunk(head, torch.zeros_like(noise), 1.0, cond)
        return clean_chunk(head, (1 - config.mip_time) * first, config.mip_time, cond)
    return integrate(head, noise, cond, num_inference_steps, instantaneous=config.name == "flow")


def integrate(head: Head, noise: Tensor, cond: Tensor, steps: int, *, instantaneous: bool = False) -> Tensor:
    """Walk from t = 1 to t = 0 on the uniform grid of `steps` intervals: z <- z - (t - r) u(z, r, t).

    Args:
        head: u(z, r, t, cond).
        noise: z at t = 1 (B, T, A).
        cond: (B, To, C).
        steps: intervals; with 1, x = e - u(e, 0, 1).
        instantaneous: Euler steps of the velocity u(z, t, t) (flow matching) instead of the average over [r, t].
    """
    z = noise
    for i in range(steps):
        t = z.new_full((len(z),), 1 - i / steps)
        r = z.new_full((len(z),), 1 - (i + 1) / steps)
        z = z - (1 / steps) * head(z, t if instantaneous else r, t, cond)
    return z


def network_evaluations(config: ObjectiveConfig, num_inference_steps: int) -> int:
    """NFE of one chunk."""
    return {"regression": 1, "mip": 2}.get(config.name, num_inference_steps)
