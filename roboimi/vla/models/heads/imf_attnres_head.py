"""The action head: one non-causal transformer stack that predicts the average velocity u(z, r, t | cond) of a chunk.

    tokens   [ r ][ t ][ cond_1 .. cond_To ][ z_1 .. z_T ]        N = 2 + To + T, width C = n_emb
                 |  n_layer x (self-attention, SwiGLU), each reading a mix of all earlier outputs (attn_res.py)
    read-out                                [ u_1 .. u_T ]

No cross-attention and no mask: conditions and actions are tokens of one sequence, and u is read where the actions are.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from roboimi.errors import ConfigError
from roboimi.vla.models.heads.attention import RMSNorm, SelfAttention, SwiGLU
from roboimi.vla.models.heads.attn_res import AttnRes, SumHistory

SMALLEST_TIME = 0.05
"""Below this t, u = (z - D) / t is divided by this instead: the error of D would be amplified without bound."""

PARAMETERIZATIONS = ("u", "x")


class TimeEmbedding(nn.Module):
    """A time in [0, 1] -> sinusoids -> two-layer MLP.

    The time is not rescaled: du/dt grows with the embedding's frequencies, and times 1000 destroys one-step sampling.
    """

    def __init__(self, n_emb: int, features: int = 64, max_period: float = 1e4):
        super().__init__()
        exponents = torch.arange(features // 2, dtype=torch.float64) / (features // 2)
        self.register_buffer("frequencies", (max_period**-exponents).float(), persistent=False)
        self.mlp = nn.Sequential(nn.Linear(features, n_emb), nn.SiLU(), nn.Linear(n_emb, n_emb))

    def forward(self, time: Tensor) -> Tensor:
        """(B,) -> (B, C)."""
        angles = time[:, None] * self.frequencies
        return self.mlp(torch.cat((angles.cos(), angles.sin()), dim=-1))

    def jvp(self, time: Tensor) -> Tensor:
        """(B,) -> (2, B, C): the embedding and its derivative with respect to the time."""
        angles = time[:, None] * self.frequencies
        cos, sin = angles.cos(), angles.sin()
        first, _, second = self.mlp
        hidden = first(torch.cat((cos, sin), dim=-1))
        slope = F.linear(torch.cat((-sin * self.frequencies, cos * self.frequencies), dim=-1), first.weight)
        sigmoid = torch.sigmoid(hidden)
        active = hidden * sigmoid
        slope = torch.addcmul(sigmoid, active, 1 - sigmoid) * slope
        return torch.stack((second(active), F.linear(slope, second.weight)))


class IMFAttnResHead(nn.Module):
    """Predicts u (B, T, A) from z (B, T, A), r (B,), t (B,) and cond (B, To, cond_dim).

    Args:
        input_dim: A, width of one action.
        horizon: T, steps of a chunk.
        n_obs_steps: To, condition tokens.
        cond_dim: width of the condition of one observation step.
        n_emb: C.
        n_layer: attention and SwiGLU pairs.
        n_head: attention heads.
        n_kv_head: key/value heads; None: n_head.
        rope: rotary positions on queries and keys; learned positions are always added to the tokens.
        attn_res: False: the plain pre-norm residual network, for comparison.
        parameterization: `u`: the network's output is u; `x`: it is the clean chunk D, and u = (z - D) / max(t, 0.05).
        zero_init_noise_path: start with zero projections of z, r and t, so that the untrained network is a function of
            the condition alone.

    Raises:
        ConfigError: sizes that do not fit together, or an unknown parameterization.
    """

    def __init__(
        self,
        input_dim: int,
        horizon: int,
        n_obs_steps: int,
        cond_dim: int = 384,
        n_emb: int = 384,
        n_layer: int = 12,
        n_head: int = 6,
        n_kv_head: int | None = None,
        *,
        rope: bool = True,
        attn_res: bool = True,
        parameterization: str = "u",
        zero_init_noise_path: bool = False,
    ):
        super().__init__()
        if parameterization not in PARAMETERIZATIONS:
            raise ConfigError(f"Unknown parameterization {parameterization!r}: choose one of {PARAMETERIZATIONS}.")
        self.input_dim, self.horizon, self.n_obs_steps, self.cond_dim = input_dim, horizon, n_obs_steps, cond_dim
        self.parameterization = parameterization
        num_tokens = 2 + n_obs_steps + horizon
        self.r_embedding = TimeEmbedding(n_emb)
        self.t_embedding = TimeEmbedding(n_emb)
        self.cond_embedding = nn.Linear(cond_dim, n_emb)
        self.action_embedding = nn.Linear(input_dim, n_emb)
        self.positions = nn.Parameter(torch.empty(num_tokens, n_emb))
        sublayers: list[nn.Module] = []
        for _ in range(n_layer):
            sublayers += [SelfAttention(n_emb, n_head, n_kv_head, num_tokens if rope else None), SwiGLU(n_emb)]
        self.sublayers = nn.ModuleList(sublayers)
        self.norms = nn.ModuleList(RMSNorm(n_emb) for _ in sublayers)
        self.mixes = AttnRes(len(sublayers), n_emb) if attn_res else None
        self.output_norm = RMSNorm(n_emb)
        self.output = nn.Linear(n_emb, input_dim)
        self._initialise(zero_init_noise_path)

    def _initialise(self, zero_init_noise_path: bool) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=1 / math.sqrt(module.in_features))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.positions, std=0.5)
        if self.parameterization == "u":
            nn.init.zeros_(self.output.weight)
        if zero_init_noise_path:
            for layer in (self.r_embedding.mlp[-1], self.t_embedding.mlp[-1], self.action_embedding):
                nn.init.zeros_(layer.weight)

    def forward(self, z: Tensor, r: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        """Average velocity over [r, t] of the trajectory through z at time t; t = 1 is noise, t = 0 is data.

        Args:
            z: (B, T, A) noisy chunk, normalised units.
            r: (B,) start of the interval, 0 <= r <= t.
            t: (B,) time of z.
            cond: (B, To, cond_dim).

        Returns:
            u (B, T, A).
        """
        tokens = self._tokens(
            self.r_embedding(r), self.t_embedding(t), self.cond_embedding(cond), self.action_embedding(z)
        )
        tokens = tokens + self.positions
        history = SumHistory(tokens) if self.mixes is None else self.mixes.history(tokens)
        for norm, sublayer in zip(self.norms, self.sublayers, strict=True):
            history.append(sublayer(norm(history.read())))
        output = self.output(self.output_norm(history.read()[:, -self.horizon :]))
        if self.parameterization == "u":
            return output
        return (z - output) / t.clamp(min=SMALLEST_TIME)[:, None, None]

    def jvp(self, z: Tensor, r: Tensor, t: Tensor, cond: Tensor, tangent: Tensor) -> Tensor:
        """Forward-mode derivative of u with the tangent (`tangent`, 0, 1, 0) on (z, r, t, cond), without a graph.

        Args:
            z: (B, T, A), as in `forward`, like r, t and cond.
            r: (B,).
            t: (B,).
            cond: (B, To, cond_dim).
            tangent: (B, T, A), dz/dt along the trajectory.

        Returns:
            du/dt (B, T, A).
        """
        time, time_slope = self.t_embedding.jvp(t)
        r_embedding, cond_embedding = self.r_embedding(r), self.cond_embedding(cond)
        tokens = self._tokens(r_embedding, time, cond_embedding, self.action_embedding(z)) + self.positions
        action_slope = F.linear(tangent, self.action_embedding.weight)
        slopes = self._tokens(torch.zeros_like(time), time_slope, torch.zeros_like(cond_embedding), action_slope)
        pair = torch.stack((tokens, slopes))  # (2, B, N, C)
        history = SumHistory(pair) if self.mixes is None else self.mixes.pair_history(pair)
        for norm, sublayer in zip(self.norms, self.sublayers, strict=True):
            history.append(sublayer.jvp(norm.jvp(history.read())))
        normed, normed_slope = self.output_norm.jvp(history.read()[:, :, -self.horizon :])
        slope = F.linear(normed_slope, self.output.weight)
        if self.parameterization == "u":
            return slope
        divisor = t.clamp(min=SMALLEST_TIME)[:, None, None]
        shrink = (t >= SMALLEST_TIME).to(t.dtype)[:, None, None] / divisor  # d divisor / dt / divisor
        return (tangent - slope - (z - self.output(normed)) * shrink) / divisor

    def _tokens(self, r: Tensor, t: Tensor, cond: Tensor, actions: Tensor) -> Tensor:
        """The sequence (B, N, C) from r, t (B, C), cond (B, To, C) and actions (B, T, C)."""
        return torch.cat((r[:, None], t[:, None], cond, actions), dim=1)
