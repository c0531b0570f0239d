"""Exponential moving average of the trained weights, with a warm-up of the decay.

Update k (0-based) is ema ← d_k·ema + (1 − d_k)·weights with d_k = min(max_decay, 1 − (1+k)^−power), as in the
EMAModel of diffusion_policy: early averages forget the random initialisation, late ones span thousands of updates.
"""

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from roboimi.vla.training.optim import trainable_parameters


def decay_at(update: int, *, max_decay: float, power: float = 0.75) -> float:
    """The decay d_k of update k (0-based); d_0 is 0: the average begins at the weights after the first update."""
    return min(max_decay, 1.0 - (1.0 + update) ** -power)


class EMA:
    """Averages of the trainable parameters of one model; buffers are not averaged, the model's own are used.

    Attributes:
        updates: how many updates are in the average.
        average: parameter name → averaged value, on the parameter's device.
    """

    def __init__(self, model: nn.Module, *, max_decay: float, power: float = 0.75):
        self.max_decay, self.power = max_decay, power
        self.updates = 0
        self._parameters = trainable_parameters(model)
        self.average = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take the parameters' present values into the average."""
        decay = decay_at(self.updates, max_decay=self.max_decay, power=self.power)
        torch._foreach_lerp_(list(self.average.values()), list(self._parameters.values()), 1.0 - decay)
        self.updates += 1

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Within the block the model has the averaged weights; after it, its own again, also when the block fails.

        The storages change places, nothing is copied: training steps inside the block would corrupt the average.
        """
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def load(self, average: Mapping[str, Tensor], updates: int) -> None:
        """Go on from a saved average.

        Raises:
            KeyError: a parameter is missing in `average`.
        """
        for name, value in self.average.items():
            value.copy_(average[name])
        self.updates = updates

    def _exchange(self) -> None:
        for name, parameter in self._parameters.items():
            self.average[name], parameter.data = parameter.data, self.average[name]
