"""Projection of the concatenated condition to the width that the head expects."""

from torch import Tensor, nn


class LinearConditionProjector(nn.Linear):
    """One linear map of the condition of each observation step.

    Args:
        input_dim: V * d + S, the agent's `raw_per_step_cond_dim`.
        output_dim: the head's `cond_dim`.
    """

    def __init__(self, input_dim: int, output_dim: int):
        super().__init__(input_dim, output_dim)
        self.output_dim = output_dim

    def forward(self, cond: Tensor) -> Tensor:
        """(B, To, input_dim) -> (B, To, output_dim)."""
        return super().forward(cond)
