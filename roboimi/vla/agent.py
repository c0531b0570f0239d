"""The policy: backbone, condition, normalisation, head; training loss and chunk prediction in raw units.

state (B, To, S) --------------- normalise --+
                                             +-- concat --> [cond_projector] --> cond (B, To, C) --> head --> (B, T, A)
images | features | environment_state ------ +
                        vision_backbone
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from roboimi.errors import CheckpointError, ConfigError, DataError, PolicyOutputError
from roboimi.vla.chunk_queue import require_slice
from roboimi.vla.models.normalizer import INPUT_LIMIT, MinMaxNormalizer
from roboimi.vla.objectives import ObjectiveConfig, compute
from roboimi.vla.sampling import sample

FROZEN_PREFIX = "vision_backbone.vision_model."
"""Where the frozen tower lies in the agent's state dict; a checkpoint names the tower and does not hold it."""


class VLAAgent(nn.Module):
    """A chunk policy over S state and A action dimensions.

    Args:
        vision_backbone: has `output_dim`, `needs`, and maps a batch to (B, To, output_dim).
        head: u(z, r, t, cond), with `cond_dim`, `input_dim`, `horizon` and `n_obs_steps`.
        cond_projector: a module with `output_dim`, or a factory called with `input_dim=raw_per_step_cond_dim`, or None.
        obs_dim: S.
        action_dim: A.
        obs_horizon: To.
        pred_horizon: T.
        num_action_steps: Ta, executed of each chunk.
        objective: an `ObjectiveConfig`, or its fields.
        num_inference_steps: NFE of one chunk by default.

    Attributes:
        raw_per_step_cond_dim: width of the condition of one observation step before the projector (V * d + S).
        per_step_cond_dim: after it; equals the head's `cond_dim`.
        global_cond_dim: To * per_step_cond_dim.

    Raises:
        ConfigError: the parts do not fit together.
    """

    def __init__(
        self,
        vision_backbone: nn.Module,
        head: nn.Module,
        cond_projector: nn.Module | Callable[..., nn.Module] | None = None,
        *,
        obs_dim: int,
        action_dim: int,
        obs_horizon: int = 2,
        pred_horizon: int = 16,
        num_action_steps: int = 8,
        objective: ObjectiveConfig | Mapping[str, Any] | None = None,
        num_inference_steps: int = 1,
    ):
        super().__init__()
        require_slice(obs_horizon, pred_horizon, num_action_steps)
        if num_inference_steps < 1:
            raise ConfigError(f"num_inference_steps={num_inference_steps} must be at least 1.")
        self.obs_dim, self.action_dim = obs_dim, action_dim
        self.obs_horizon, self.pred_horizon, self.num_action_steps = obs_horizon, pred_horizon, num_action_steps
        self.num_inference_steps = num_inference_steps
        self.objective = objective if isinstance(objective, ObjectiveConfig) else ObjectiveConfig(**(objective or {}))

        self.vision_backbone = vision_backbone
        self.head = head
        self.raw_per_step_cond_dim = vision_backbone.output_dim + obs_dim
        if cond_projector is not None and not isinstance(cond_projector, nn.Module):
            cond_projector = cond_projector(input_dim=self.raw_per_step_cond_dim)
        self.cond_projector = cond_projector
        self.per_step_cond_dim = self.raw_per_step_cond_dim if cond_projector is None else cond_projector.output_dim
        self.global_cond_dim = self.obs_horizon * self.per_step_cond_dim
        self._check_head()

        dims = {"state": obs_dim, "action": action_dim}
        if vision_backbone.needs == "environment_state":
            dims["environment_state"] = vision_backbone.output_dim
        self.normalizers = nn.ModuleDict({name: MinMaxNormalizer(dim) for name, dim in dims.items()})

    def _check_head(self) -> None:
        if self.per_step_cond_dim != self.head.cond_dim:
            raise ConfigError(
                f"The head reads conditions of cond_dim={self.head.cond_dim} and the agent gives "
                f"{self.per_step_cond_dim}: set the projector's output_dim to the head's cond_dim."
            )
        has = (self.head.input_dim, self.head.horizon, self.head.n_obs_steps)
        wanted = (self.action_dim, self.pred_horizon, self.obs_horizon)
        if has != wanted:
            raise ConfigError(
                f"The head is built for (input_dim, horizon, n_obs_steps)={has} and the agent for (action_dim, "
                f"pred_horizon, obs_horizon)={wanted}: make them equal."
            )

    @property
    def device(self) -> torch.device:
        """Where the policy lives."""
        return self.normalizers["state"].center.device

    def set_statistics(self, statistics: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
        """Fit the normalisers to the train split's statistics: `state`, `action` and, where read, `environment_state`.

        Raises:
            DataError: statistics are missing, of another width, or not finite.
        """
        for name, normalizer in self.normalizers.items():
            if name not in statistics:
                raise DataError(f"The dataset has no statistics of {name!r}, which this policy reads: use another arm.")
            normalizer.fit(statistics[name])

    def _build_cond(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Condition of each observation step.

        Args:
            batch: `state` (B, To, S) in raw units, and what the backbone needs.

        Returns:
            (B, To, per_step_cond_dim).
        """
        seen = dict(batch)
        if "environment_state" in self.normalizers:
            seen["environment_state"] = self._observe("environment_state", batch)
        cond = torch.cat((self.vision_backbone(seen), self._observe("state", batch)), dim=-1)  # (B, To, raw)
        return cond if self.cond_projector is None else self.cond_projector(cond)

    def _observe(self, name: str, batch: Mapping[str, Tensor]) -> Tensor:
        return self.normalizers[name](batch[name]).clamp(-INPUT_LIMIT, INPUT_LIMIT)

    def compute_loss(
        self, batch: Mapping[str, Tensor], generator: torch.Generator | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The objective's loss of a batch.

        Args:
            batch: as in `_build_cond`, with `action` (B, T, A) in raw units and `action_is_pad` (B, T).
            generator: source of noise and times.

        Returns:
            0-d loss, and detached 0-d metrics.
        """
        x = self.normalizers["action"](batch["action"])
        mask = ~batch["action_is_pad"]
        return compute(self.head, x, self._build_cond(batch), mask, self.objective, generator=generator)

    @torch.no_grad()
    def predict_action_chunk(
        self,
        batch: Mapping[str, Tensor],
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        num_inference_steps: int | None = None,
    ) -> Tensor:
        """Predict chunks; index 0 of a chunk is the oldest observation step.

        Args:
            batch: as in `_build_cond`.
            noise: (B, T, A) standard normal; None: drawn from `generator`.
            generator: source of the noise.
            num_inference_steps: NFE; None: the agent's own.

        Returns:
            (B, T, A) in raw units (rad; gripper 0..1). The final normalised sample is clamped to [-1, 1], the range of
            the train split; nothing before it is.

        Raises:
            PolicyOutputError: the network gives NaN or infinity.
        """
        cond = self._build_cond(batch)
        if noise is None:
            device = cond.device if generator is None else generator.device
            shape = (len(cond), self.pred_horizon, self.action_dim)
            noise = torch.randn(shape, generator=generator, device=device)
        chunk = sample(self.head, noise.to(cond), cond, self.objective, num_inference_steps or self.num_inference_steps)
        if not torch.isfinite(chunk).all():
            raise PolicyOutputError(
                "The policy predicts actions that are not finite: its statistics were not set, its observation is not "
                "finite, or its weights diverged; use an earlier checkpoint."
            )
        return self.normalizers["action"].inverse(chunk.clamp(-1, 1))

    def trainable_state_dict(self) -> dict[str, Tensor]:
        """Weights and normalisers, without the frozen tower."""
        return {name: value for name, value in self.state_dict().items() if not name.startswith(FROZEN_PREFIX)}

    def load_trainable_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load what `trainable_state_dict` gave.

        Raises:
            CheckpointError: names or shapes are those of another policy.
        """
        own = self.trainable_state_dict()
        different = sorted(
            name
            for name in own.keys() | state.keys()
            if getattr(own.get(name), "shape", 0) != getattr(state.get(name), "shape", 1)
        )
        if different:
            raise CheckpointError(
                f"The checkpoint is of another policy: {len(different)} tensors differ, the first is {different[0]!r}; "
                "build the policy with the configuration that it was trained with."
            )
        self.load_state_dict(state, strict=False)
