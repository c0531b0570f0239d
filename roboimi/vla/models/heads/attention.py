"""Sub-layers of the action head: RMSNorm, non-causal self-attention with rotary positions, SwiGLU.

Everything keeps the dtype of its input (a softmax forced to float32 would ruin a float64 finite-difference check), and
everything has a forward-mode derivative, provided that attention runs on the MATH backend (see `roboimi.vla.objectives`).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from roboimi.errors import ConfigError


class RMSNorm(nn.Module):
    """x / rms(x) * gain over the last axis (Zhang and Sennrich 2019, arXiv 1910.07467)."""

    def __init__(self, n_emb: int, eps: float = 1e-6):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(n_emb))

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


def rotary_angles(num_tokens: int, head_dim: int, base: float = 1e4) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary embedding (Su et al. 2021, arXiv 2104.09864, eq. 15).

    Returns:
        Two float32 tensors (N, head_dim / 2): token n turns pair i by n * base^(-2 i / head_dim) radians.
    """
    frequencies = base ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    angles = torch.arange(num_tokens, dtype=torch.float64)[:, None] * frequencies
    return angles.cos().float(), angles.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (x_i, x_{i + head_dim/2}) of x (..., N, head_dim) by the angles of cos, sin (N, head_dim / 2)."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention of q (B, heads, N, head_dim) over k, v (B, kv heads, N, head_dim): (B, heads, N, head_dim).

    Consecutive query heads share a key/value head. On a CPU the explicit products beat the fused kernel at these few tokens.
    """
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=q.shape[1] != k.shape[1])
    grouped = (q * q.shape[-1] ** -0.5).reshape(
        k.shape[0], k.shape[1], -1, k.shape[-1]
    )  # (B, kv heads, group * N, ...)
    return (torch.softmax(grouped @ k.transpose(-1, -2), dim=-1) @ v).view(q.shape)


class SelfAttention(nn.Module):
    """Full (non-causal) self-attention with grouped key/value heads and optional rotary positions.

    Args:
        n_emb: C, width of a token.
        n_head: query heads; `n_emb / n_head` must be whole and, with rotary positions, even.
        n_kv_head: key/value heads, each shared by `n_head / n_kv_head` query heads; None: one per query head.
        num_tokens: N, for the rotary table; None: no rotary positions.

    Raises:
        ConfigError: the heads do not divide the width, or cannot be rotated.
    """

    def __init__(self, n_emb: int, n_head: int, n_kv_head: int | None = None, num_tokens: int | None = None):
        super().__init__()
        n_kv_head = n_kv_head or n_head
        if n_emb % n_head:
            raise ConfigError(f"n_emb={n_emb} does not divide into n_head={n_head} heads: choose a divisor of n_emb.")
        if n_head % n_kv_head:
            raise ConfigError(f"n_head={n_head} does not divide into n_kv_head={n_kv_head} groups: choose a divisor.")
        self.n_head, self.n_kv_head, self.head_dim = n_head, n_kv_head, n_emb // n_head
        self.rope = num_tokens is not None
        if self.rope:
            if self.head_dim % 2:
                raise ConfigError(
                    f"A head is n_emb / n_head = {self.head_dim} wide, and rotary positions need an even width: "
                    "choose another n_head or rope=false."
                )
            cos, sin = rotary_angles(num_tokens, self.head_dim)
            self.register_buffer("cos", cos, persistent=False)
            self.register_buffer("sin", sin, persistent=False)
        self.qkv = nn.Linear(n_emb, (n_head + 2 * n_kv_head) * self.head_dim, bias=False)
        self.out = nn.Linear(n_emb, n_emb, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        batch, tokens, _ = x.shape
        heads = self.qkv(x).view(batch, tokens, -1, self.head_dim).transpose(1, 2)  # (B, heads, N, head_dim)
        if self.rope:
            turned, v = heads.split((self.n_head + self.n_kv_head, self.n_kv_head), dim=1)
            q, k = rotate(turned, self.cos, self.sin).split((self.n_head, self.n_kv_head), dim=1)
        else:
            q, k, v = heads.split((self.n_head, self.n_kv_head, self.n_kv_head), dim=1)
        return self.out(attend(q, k, v).transpose(1, 2).reshape(batch, tokens, -1))


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)), hidden width 8/3 of the token's (Shazeer 2020, arXiv 2002.05202, eq. 6).

    Gate and up are one matrix product; the hidden width is rounded up to a multiple of 8.
    """

    def __init__(self, n_emb: int):
        super().__init__()
        hidden = -(-8 * n_emb // 3 // 8) * 8
        self.gate_up = nn.Linear(n_emb, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, n_emb, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)
