"""Training objectives of a chunk predictor: free functions with one signature, chosen by name.

All of them train the same network u(z, r, t | cond), the average velocity over [r, t] of the straight path
z_t = (1 - t) x + t e from data x (t = 0) to noise e ~ N(0, I) (t = 1); its conditional velocity is e - x.

    imf         improved MeanFlow (arXiv 2512.02012, algorithm 1), tangent v = u(z, t, t) of the network itself
    meanflow    MeanFlow (arXiv 2505.13447, eq. 11), tangent e - x
    flow        flow matching (arXiv 2210.02747): u(z, t, t) -> e - x
    regression  the chunk from z = 0 at t = 1: no generative model at all
    mip         two-step regression (arXiv 2512.01809): from z = 0, then from a lightly noised chunk

MeanFlow identity: v(z_t, t) = u + (t - r) du/dt, where du/dt is the derivative along the trajectory, that is the
Jacobian-vector product of u with the tangent (v, 0, 1) on (z, r, t). The residual is V - (e - x) with
V = u + (t - r) sg[du/dt], and the gradient flows through u alone. Two passes: du/dt first, forward mode without a
graph, only on the rows with r < t (elsewhere its factor is zero); then one ordinary forward pass with a graph.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from roboimi.errors import ConfigError

Head = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""u(z (B, T, A), r (B,), t (B,), cond (B, To, C)) -> (B, T, A)."""

Metrics = dict[str, Tensor]


@dataclass(frozen=True)
class ObjectiveConfig:
    """Which objective, and its constants.

    Attributes:
        name: a key of `OBJECTIVES`.
        jvp_fraction: share of the rows of a batch with r < t (`imf`, `meanflow`); the other rows have r = t.
        time_sampler: `logit_normal` or `uniform`; two independent draws, sorted, are r and t.
        logit_mean: mean of logit(t) for `logit_normal`.
        logit_std: standard deviation of logit(t).
        adaptive_power: p of the weight 1 / sg[S + c]^p on a row's mean squared error S; 0: plain mean. With p = 1 it
            lost modes of a bimodal toy.
        adaptive_eps: c of that weight.
        mip_time: noise level of the second step of `mip`.
    """

    name: str = "imf"
    jvp_fraction: float = 0.5
    time_sampler: str = "logit_normal"
    logit_mean: float = -0.4
    logit_std: float = 1.0
    adaptive_power: float = 0.0
    adaptive_eps: float = 1e-3
    mip_time: float = 0.1

    def __post_init__(self):
        if self.name not in OBJECTIVES:
            raise ConfigError(f"Unknown objective {self.name!r}: choose one of {sorted(OBJECTIVES)}.")
        if self.time_sampler not in {"logit_normal", "uniform"}:
            raise ConfigError(f"Unknown time_sampler {self.time_sampler!r}: choose logit_normal or uniform.")
        if not 0 <= self.jvp_fraction <= 1:
            raise ConfigError(f"objective.jvp_fraction={self.jvp_fraction} is a share: choose a number in [0, 1].")
        if not 0 < self.mip_time <= 1:
            raise ConfigError(f"objective.mip_time={self.mip_time} is a noise level: choose a number in (0, 1].")


def imf(
    head: Head,
    x: Tensor,
    cond: Tensor,
    mask: Tensor,
    config: ObjectiveConfig,
    *,
    generator: torch.Generator | None = None,
    noise: Tensor | None = None,
    times: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Metrics]:
    """Improved MeanFlow. The signature of every objective.

    Args:
        head: the network; may be any function of (z, r, t, cond).
        x: (B, T, A) normalised chunks.
        cond: (B, To, C) conditions, with graph.
        mask: (B, T) True where the action is part of the demonstration (not padding after its end).
        config: constants.
        generator: source of noise and times.
        noise: (B, T, A) instead of drawn noise.
        times: (r, t), each (B,), instead of drawn times; rows with r = t come first.

    Returns:
        The loss, and detached 0-d metrics: `mse` (unweighted), and of the rows with r = t, r < t: `mse_equal`,
        `mse_below`.
    """
    return _mean_velocity(head, x, cond, mask, config, generator, noise, times, own_tangent=True)


def meanflow(head, x, cond, mask, config, *, generator=None, noise=None, times=None) -> tuple[Tensor, Metrics]:
    """MeanFlow: as `imf`, with the conditional velocity e - x as the tangent."""
    return _mean_velocity(head, x, cond, mask, config, generator, noise, times, own_tangent=False)


def flow(head, x, cond, mask, config, *, generator=None, noise=None, times=None) -> tuple[Tensor, Metrics]:
    """Flow matching of the instantaneous velocity u(z, t, t)."""
    e = _noise_like(x, generator) if noise is None else noise
    t = sample_times(x, config, generator)[1] if times is None else times[1]
    z = _interpolate(x, e, t)
    return _weighted(_row_errors(head(z, t, t, cond) - (e - x), mask), config, {})


def regression(head, x, cond, mask, config, *, generator=None, noise=None, times=None) -> tuple[Tensor, Metrics]:
    """Plain regression: x = z - t u at z = 0, t = 1. Draws nothing."""
    zeros = torch.zeros_like(x)
    return _weighted(_row_errors(clean_chunk(head, zeros, 1.0, cond) - x, mask), config, {})


def mip(head, x, cond, mask, config, *, generator=None, noise=None, times=None) -> tuple[Tensor, Metrics]:
    """Two-step regression: the chunk from z = 0 at t = 1, and from z = (1 - s) x + s e at t = s = `mip_time`."""
    e = _noise_like(x, generator) if noise is None else noise
    s = config.mip_time
    first = _row_errors(clean_chunk(head, torch.zeros_like(x), 1.0, cond) - x, mask)
    second = _row_errors(clean_chunk(head, (1 - s) * x + s * e, s, cond) - x, mask)
    metrics = {"mse_first": first.detach().mean(), "mse_second": second.detach().mean()}
    return _weighted(first + second, config, metrics)


OBJECTIVES = {"imf": imf, "meanflow": meanflow, "flow": flow, "regression": regression, "mip": mip}
"""The objectives by name."""


def compute(
    head: Head, x: Tensor, cond: Tensor, mask: Tensor, config: ObjectiveConfig, **given
) -> tuple[Tensor, Metrics]:
    """The loss of the objective that `config` names; arguments and result as in `imf`."""
    return OBJECTIVES[config.name](head, x, cond, mask, config, **given)


def clean_chunk(head: Head, z: Tensor, time: float, cond: Tensor) -> Tensor:
    """The clean chunk z - t u(z, 0, t) that the network sees from z (B, T, A) at time t."""
    t = z.new_full((len(z),), time)
    return z - time * head(z, torch.zeros_like(t), t, cond)


def sample_times(x: Tensor, config: ObjectiveConfig, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Draw r <= t for the rows of x: (B,), (B,); the first rows have r = t, the last `jvp_fraction` of them r < t."""
    device = x.device if generator is None else generator.device
    shape = (2, len(x))
    if config.time_sampler == "uniform":
        draws = torch.rand(shape, generator=generator, device=device)
    else:
        normal = torch.randn(shape, generator=generator, device=device)
        draws = torch.sigmoid(config.logit_mean + config.logit_std * normal)
    r, t = draws.to(x).sort(dim=0).values
    equal = len(x) - round(config.jvp_fraction * len(x))
    return torch.cat((t[:equal], r[equal:])), t


def time_derivative(head: Head, z: Tensor, r: Tensor, t: Tensor, cond: Tensor, tangent: Tensor) -> Tensor:
    """du/dt along the trajectory: the Jacobian-vector product of u with (tangent, 0, 1) on (z, r, t), without a graph.

    In full precision (no autocast). A head that brings its own forward-mode derivative, `jvp(z, r, t, cond, tangent)`,
    is asked for it; any other is differentiated by `torch.func.jvp`, with r closed over, so that its tangent is zero,
    and with attention on the MATH backend, the only one that has a forward-mode derivative.
    """
    with torch.no_grad(), torch.autocast(z.device.type, enabled=False):
        if hasattr(head, "jvp"):
            return head.jvp(z, r, t, cond, tangent)
        with sdpa_kernel(SDPBackend.MATH):
            return torch.func.jvp(lambda z, t: head(z, r, t, cond), (z, t), (tangent, torch.ones_like(t)))[1]


def _mean_velocity(head, x, cond, mask, config, generator, noise, times, *, own_tangent) -> tuple[Tensor, Metrics]:
    e = _noise_like(x, generator) if noise is None else noise
    r, t = sample_times(x, config, generator) if times is None else times
    z = _interpolate(x, e, t)
    velocity = e - x
    equal = len(x) - round(config.jvp_fraction * len(x)) if times is None else int((r == t).sum())
    rows = slice(equal, None)  # the rows with r < t; no gather is needed
    target = velocity
    if equal < len(x):
        z_below, r_below, t_below, cond_below = z[rows], r[rows], t[rows], cond[rows].detach()
        if own_tangent:
            with torch.no_grad():
                tangent = head(z_below, t_below, t_below, cond_below).to(z.dtype)
        else:
            tangent = velocity[rows]
        slope = time_derivative(head, z_below, r_below, t_below, cond_below.to(z.dtype), tangent)
        correction = (t_below - r_below)[:, None, None] * slope
        target = torch.cat((velocity[:equal], velocity[rows] - correction))
    errors = _row_errors(head(z, r, t, cond) - target, mask)
    detached = errors.detach()
    metrics = {}
    if equal:
        metrics["mse_equal"] = detached[:equal].mean()
    if equal < len(x):
        metrics["mse_below"] = detached[rows].mean()
    return _weighted(errors, config, metrics)


def _row_errors(difference: Tensor, mask: Tensor) -> Tensor:
    """Squared errors of each row (B,), scaled so that their mean over rows is the mean over unpadded entries."""
    valid = mask.to(difference.dtype)
    per_step = difference.square().mean(dim=-1) * valid  # (B, T)
    return per_step.sum(dim=-1) * (len(mask) / valid.sum().clamp(min=1))


def _weighted(errors: Tensor, config: ObjectiveConfig, metrics: Metrics) -> tuple[Tensor, Metrics]:
    metrics = {"mse": errors.detach().mean(), **metrics}
    if config.adaptive_power:
        errors = errors / (errors.detach() + config.adaptive_eps) ** config.adaptive_power
    return errors.mean(), metrics


def _interpolate(x: Tensor, e: Tensor, t: Tensor) -> Tensor:
    t = t[:, None, None]
    return (1 - t) * x + t * e


def _noise_like(x: Tensor, generator: torch.Generator | None) -> Tensor:
    device = x.device if generator is None else generator.device
    return torch.randn(x.shape, generator=generator, device=device).to(x)
