"""A training at one step boundary, in host memory: what a checkpoint holds, and what a resumed training starts from."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from roboimi.errors import CheckpointError
from roboimi.vla.training.ema import EMA
from roboimi.vla.training.rng import capture_rng, restore_rng

Tensors = dict[str, dict[str, Tensor]]


@dataclass(frozen=True)
class Snapshot:
    """A training at one step boundary, independent of the live training.

    Attributes:
        step: updates done (skipped ones included).
        tensors: file stem → name → tensor, for each of `manifest.TENSOR_FILES`.
        state: counters and the like, plain JSON types.
        metrics: the metrics file up to this step; None in checkpoints that were written before it was part of them.
    """

    step: int
    tensors: Tensors
    state: dict[str, Any]
    metrics: str | None = ""


class HostBuffers:
    """Host memory for snapshots, used again when a snapshot has been written.

    Fresh memory is many times slower to copy into than memory that was touched before, and the training stands still
    meanwhile. Pinned where the weights are on a GPU, so that the copy runs at the speed of the bus.
    """

    def __init__(self):
        self._free: list[Tensors] = []

    def take(self) -> Tensors:
        """Buffers that nobody uses; empty where there are none yet."""
        return self._free.pop() if self._free else {}

    def give_back(self, snapshot: Snapshot) -> None:
        """The snapshot is not needed any more; its memory may be overwritten."""
        self._free.append(snapshot.tensors)


def take_snapshot(
    step: int,
    agent: torch.nn.Module,
    ema: EMA,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    *,
    metrics: str = "",
    buffers: HostBuffers | None = None,
) -> Snapshot:
    """Copy everything that the next step depends on to host memory.

    A copy also on the CPU: a tensor that is only referred to would have changed by the time it is written.
    """
    memory = buffers.take() if buffers else {}
    moments = {
        f"{name}/{kind}": value
        for name, parameter in _named_parameters(optimizer)
        for kind, value in optimizer.state.get(parameter, {}).items()
    }
    live = {"model": agent.trainable_state_dict(), "ema": ema.average, "optimizer": moments, "rng": capture_rng()}
    tensors = {stem: host_copy(group, memory.get(stem, {})) for stem, group in live.items()}
    if any(tensor.is_cuda for group in live.values() for tensor in group.values()):
        torch.cuda.synchronize()
    # The averages come with the policy's buffers, which are not averaged.
    tensors["ema"] = tensors["model"] | tensors["ema"]
    return Snapshot(step, tensors, {**state, "step": step, "ema_updates": ema.updates}, metrics)


def host_copy(tensors: Mapping[str, Tensor], buffers: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous copies in host memory, in `buffers` where they fit; those from a GPU may still be under way."""
    copies = {}
    for name, tensor in tensors.items():
        buffer = buffers.get(name)
        if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
            buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        copies[name] = buffer.copy_(tensor.detach(), non_blocking=True)
    return copies


def restore(snapshot: Snapshot, agent: torch.nn.Module, ema: EMA, optimizer: torch.optim.Optimizer) -> None:
    """Make a freshly built training continue from `snapshot`: weights, averages, moments and random generators.

    Raises:
        CheckpointError: the snapshot belongs to another architecture.
    """
    try:
        agent.load_trainable_state_dict(snapshot.tensors["model"])
        ema.load(snapshot.tensors["ema"], snapshot.state["ema_updates"])
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(
            f"The checkpoint of step {snapshot.step} does not fit the policy ({' '.join(str(error).split())}): "
            "train under another configuration or with the code that wrote it."
        ) from error
    moments = snapshot.tensors["optimizer"]
    for name, parameter in _named_parameters(optimizer):
        # A copy: the optimiser works in place, the snapshot stays what it was.
        optimizer.state[parameter] = {
            kind: moments[f"{name}/{kind}"].to(parameter.device, copy=True)
            for kind in ("step", "exp_avg", "exp_avg_sq")
            if f"{name}/{kind}" in moments
        }
    restore_rng(snapshot.tensors["rng"])


def _named_parameters(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, torch.nn.Parameter]]:
    for group in optimizer.param_groups:
        yield from zip(group["param_names"], group["params"], strict=True)
