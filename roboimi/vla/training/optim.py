"""AdamW with the right decay groups, and the learning rate as a pure function of the step."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from roboimi.errors import ConfigError

DECAYED_MODULES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""Only the `weight` of these is decayed. All else (norm gains, biases, position and token embeddings, pseudo-queries of
attention residuals) has a meaning at its own scale, which decay would pull towards zero."""


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Split the trainable parameters of `model` into a decayed and an undecayed group.

    Args:
        model: its frozen parameters (`requires_grad` False) belong to no group.
        weight_decay: of the first group; the second one has 0.

    Returns:
        AdamW parameter groups whose `params` are (name, parameter) pairs; a group without members is left out.

    Raises:
        ConfigError: the model has nothing to train.
    """
    decayed_ids = {id(module.weight) for module in model.modules() if isinstance(module, DECAYED_MODULES)}
    named = trainable_parameters(model)
    if not named:
        raise ConfigError("The policy has no trainable parameter: unfreeze its head or choose another one.")
    decayed = [(name, parameter) for name, parameter in named.items() if id(parameter) in decayed_ids]
    undecayed = [(name, parameter) for name, parameter in named.items() if id(parameter) not in decayed_ids]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": undecayed, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that training changes, by name; a parameter under two names is there once."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def make_optimizer(
    model: nn.Module, *, learning_rate: float, betas: tuple[float, float], weight_decay: float
) -> torch.optim.AdamW:
    """AdamW over `parameter_groups(model)`.

    The fused kernel is used on CUDA and on the CPU alike: measured with 6 M parameters on one core it takes 3.4 ms, the
    plain loop 10.7 ms and the foreach form 21.7 ms.
    """
    return torch.optim.AdamW(parameter_groups(model, weight_decay), lr=learning_rate, betas=betas, fused=True)


def learning_rate(step: int, *, peak: float, warmup_steps: int, total_steps: int, final_fraction: float) -> float:
    """Learning rate of update `step` (0-based): linear warm-up to `peak`, then half a cosine down.

    The first update has `peak / (warmup_steps + 1)`, update `warmup_steps` the peak, update `total_steps` would have
    `peak * final_fraction`. A pure function of the step, so nothing has to be saved to go on.
    """
    if step < warmup_steps:
        return peak * (step + 1) / (warmup_steps + 1)
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    cosine = 0.5 * (1.0 + math.cos(math.pi * progress))
    return peak * (final_fraction + (1.0 - final_fraction) * cosine)


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Give every group the rate `value`."""
    for group in optimizer.param_groups:
        group["lr"] = value


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Scale all gradients together so that their joint L2 norm is at most `max_norm`.

    Returns:
        The norm before clipping, a 0-d tensor; not finite exactly when some gradient is not (or overflows).
    """
    return nn.utils.clip_grad_norm_(parameters, max_norm)
