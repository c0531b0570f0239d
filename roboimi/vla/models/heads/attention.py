"""Sub-layers of the action head: RMSNorm, non-causal self-attention with rotary positions, SwiGLU.

Everything keeps the dtype of its input: a softmax forced to float32 would ruin a float64 finite-difference check.

Each module has, next to `forward`, its forward-mode derivative `jvp`. It takes and gives a *pair* (2, B, N, C): values
and tangents, the weights being constants. Written out it costs two forward passes; `torch.func.jvp` costs more than
four, because it multiplies each weight matrix's zero tangent too, and runs several times as many operations.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from roboimi.errors import ConfigError


class RMSNorm(nn.Module):
    """x / rms(x) * gain over the last axis (Zhang and Sennrich 2019, arXiv 1910.07467).

    Attributes:
        hand_written: whether training on a CPU uses `_RowNorm`, a quarter of the time of the library's norm.
    """

    def __init__(self, n_emb: int, eps: float = 1e-6, hand_written: bool = True):
        super().__init__()
        self.eps = eps
        self.hand_written = hand_written
        self.weight = nn.Parameter(torch.ones(n_emb))

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        if self.hand_written and x.device.type == "cpu" and torch.is_grad_enabled():
            return _RowNorm.apply(x, self.weight, self.eps)
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)

    def jvp(self, pair: Tensor) -> Tensor:
        """With n = x / rms(x): dn = (dx - n mean(n dx)) / rms(x)."""
        x, dx = pair
        rinv = torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + self.eps)
        n = x * rinv
        dn = torch.addcmul(dx, n, (n * dx).mean(dim=-1, keepdim=True), value=-1).mul_(rinv)
        return torch.stack((n, dn)).mul_(self.weight)


class _RowNorm(torch.autograd.Function):
    """RMSNorm with its reverse-mode derivative in a handful of operations."""

    @staticmethod
    def forward(ctx, x, weight, eps):
        rinv = torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + eps)
        normed = x * rinv
        ctx.save_for_backward(normed, rinv, weight)
        return normed * weight

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        normed, rinv, weight = ctx.saved_tensors
        product = grad * normed
        shrink = (product @ weight).div_(-weight.numel()).unsqueeze(-1)
        grad_x = torch.addcmul(grad * weight, normed, shrink).mul_(rinv)
        return grad_x, product.flatten(0, -2).sum(dim=0), None


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
        return self.out(attend(*self._heads(x)).transpose(1, 2).flatten(2))

    def jvp(self, pair: Tensor) -> Tensor:
        """With S = q k' / sqrt(head_dim), P = softmax(S): dP = P (dS - sum P dS), d(P v) = dP v + P dv."""
        (q, dq), (k, dk), (v, dv) = self._heads(pair)
        q, dq = group_queries(q, k), group_queries(dq, k)
        weights = torch.softmax(q @ k.mT, dim=-1)
        slopes = (dq @ k.mT).add_(q @ dk.mT).mul_(weights)
        slopes = torch.addcmul(slopes, weights, slopes.sum(dim=-1, keepdim=True), value=-1)
        mixed = torch.stack((weights @ v, (slopes @ v).add_(weights @ dv)))  # (2, B, kv heads, group * N, head_dim)
        mixed = mixed.unflatten(3, (-1, pair.shape[2])).flatten(2, 3)  # (2, B, heads, N, head_dim)
        return self.out(mixed.transpose(2, 3).flatten(3))

    def _heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (..., heads, N, head_dim) of x (..., N, C), turned by their positions."""
        heads = self.qkv(x).unflatten(-1, (-1, self.head_dim)).transpose(-3, -2)
        if not self.rope:
            return heads.split((self.n_head, self.n_kv_head, self.n_kv_head), dim=-3)
        turned, v = heads.split((self.n_head + self.n_kv_head, self.n_kv_head), dim=-3)
        q, k = rotate(turned, self.cos, self.sin).split((self.n_head, self.n_kv_head), dim=-3)
        return q, k, v


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention of q (B, heads, N, head_dim) over k, v (B, kv heads, N, head_dim): (B, heads, N, head_dim).

    Consecutive query heads share a key/value head. On a CPU explicit products beat the fused kernel at so few tokens.
    """
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=q.shape[1] != k.shape[1])
    return (torch.softmax(group_queries(q, k) @ k.mT, dim=-1) @ v).reshape(q.shape)


def group_queries(q: Tensor, k: Tensor) -> Tensor:
    """Scale q (B, heads, N, head_dim) by head_dim^-1/2 and group it by key head: (B, kv heads, group * N, head_dim)."""
    return (q * q.shape[-1] ** -0.5).reshape(*k.shape[:-2], -1, k.shape[-1])


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

    def jvp(self, pair: Tensor) -> Tensor:
        """With s = sigmoid(g), a = g s: da = (s + a (1 - s)) dg, d(a u) = da u + a du."""
        (gate, dgate), (up, dup) = (half.unbind() for half in self.gate_up(pair).chunk(2, dim=-1))
        hidden = torch.empty((2, *gate.shape), dtype=gate.dtype, device=gate.device)
        sigmoid = torch.sigmoid(gate)
        active = gate * sigmoid
        torch.mul(active, up, out=hidden[0])
        slope = torch.addcmul(sigmoid, active, 1 - sigmoid).mul_(dgate).mul_(up)
        torch.addcmul(slope, active, dup, out=hidden[1])
        return self.down(hidden)
