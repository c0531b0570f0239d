"""Backbones of the reference arms, which look at no image: the task's privileged state, and nothing at all."""

from collections.abc import Mapping

from torch import Tensor, nn

from roboimi.errors import ConfigError


class PrivilegedStateBackbone(nn.Module):
    """Gives the environment's own state (for transfer cube: the cube's pose) in place of image features.

    If an arm with this backbone fails, the policy does not learn; if only vision arms fail, the encoder does not see.

    Args:
        environment_state_dim: E.
        needs: `environment_state`; for readers of the configuration.

    Raises:
        ConfigError: the dataset holds no environment state (E = 0).
    """

    dataset_image_resize_shape = None
    eval_image_resize_shape = None

    def __init__(self, environment_state_dim: int, needs: str = "environment_state"):
        super().__init__()
        if environment_state_dim <= 0:
            raise ConfigError(
                "backbone=privileged_state needs an environment state, and this task or dataset has none: "
                "leave the privileged_state arm out."
            )
        self.needs = needs
        self.output_dim = environment_state_dim

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """`environment_state` (B, To, E), normalised by the agent, as it is."""
        return batch["environment_state"]


class BlindBackbone(nn.Module):
    """Gives nothing: what a policy with closed eyes reaches is the floor of every table."""

    dataset_image_resize_shape = None
    eval_image_resize_shape = None
    output_dim = 0

    def __init__(self, needs: str = ""):
        super().__init__()
        self.needs = needs

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """(B, To, 0)."""
        return batch["state"][..., :0]
