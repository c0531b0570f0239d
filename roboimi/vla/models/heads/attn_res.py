"""Attention Residuals, full form (arXiv 2603.15031): each sub-layer reads a learned mix of all earlier outputs.

With v_0 the token embedding and v_i = f_i(norm_i(h_i)) the output of sub-layer i, the input of sub-layer l is

    h_l = sum_{i<l} alpha_{i->l} v_i,      alpha_{i->l} = softmax over i of  w_l . rmsnorm_l(v_i)

per token: keys are RMS-normalised with a gain g_l, values are the raw v_i, nothing is added on top. w_l starts at zero,
which is the uniform average; as every reader of h_l is scale-invariant (pre-norm), the network then equals the plain
pre-norm residual network. Sub-layer 1 sees v_0 alone, so its mix is left out; the read-out has one.

The normalised keys are never built: w_l . rmsnorm_l(v_i) = ((w_l * g_l) . v_i) * rinv_i, where rinv_i = 1 / rms(v_i)
does not depend on l and is computed once, and one matrix product gives the logits of a source for all mixes to come.

A depth history has two methods: `read()` gives the input of the next reader, `append(v)` adds an output. `PairHistory`
does the same with pairs (2, B, N, C) of values and tangents, for the head's forward-mode derivative.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from roboimi.vla.models.heads.depth_buffer import BufferedHistory, weighted_sum


class AttnRes(nn.Module):
    """The L mixes of a network of L sub-layers: before sub-layers 2 to L, and at the read-out.

    Attributes:
        query: (L, C) pseudo-queries w, zero at the start.
        key_gain: (L, C) gains g of the key norms, one at the start.
        buffered: whether a forward pass with a graph uses one buffer of all outputs with hand-written derivatives
            (`depth_buffer.py`); otherwise plain operations, which also have a forward-mode derivative.
    """

    def __init__(self, num_sublayers: int, n_emb: int, eps: float = 1e-6, buffered: bool = True):
        super().__init__()
        self.eps = eps
        self.buffered = buffered
        self.query = nn.Parameter(torch.zeros(num_sublayers, n_emb))
        self.key_gain = nn.Parameter(torch.ones(num_sublayers, n_emb))

    def history(self, embedding: Tensor) -> "DepthHistory | BufferedHistory":
        """Start the depth history of one forward pass with the token embedding v_0 (B, N, C)."""
        kind = BufferedHistory if self.buffered and torch.is_grad_enabled() else DepthHistory
        return kind(embedding, self.query * self.key_gain, self.eps)

    def pair_history(self, embedding: Tensor) -> "PairHistory":
        """The same for a pair (2, B, N, C)."""
        return PairHistory(embedding, self.query * self.key_gain, self.eps)


class DepthHistory:
    """The sub-layer outputs of one forward pass and their logits for the mixes to come, in plain operations."""

    def __init__(self, embedding: Tensor, keys: Tensor, eps: float):
        self._keys = keys
        self._eps = eps
        self._sources: list[Tensor] = []
        self._logits: list[list[Tensor]] = [[] for _ in keys]  # of each mix, one (B, N) a source
        self.append(embedding)

    def append(self, source: Tensor) -> None:
        """Add the output v_i (B, N, C) of a sub-layer."""
        first = max(len(self._sources) - 1, 0)  # the earliest mix that is still to come
        scale = torch.rsqrt(source.square().mean(dim=-1, keepdim=True) + self._eps)
        logits = F.linear(source, self._keys[first:]) * scale
        for mix, logit in zip(self._logits[first:], logits.unbind(-1), strict=True):
            mix.append(logit)
        self._sources.append(source)

    def read(self) -> Tensor:
        """The input h (B, N, C) of the next reader: a mix of all outputs so far; the embedding alone is itself."""
        count = len(self._sources)
        if count == 1:
            return self._sources[0]
        weights = torch.softmax(torch.stack(self._logits[count - 2], dim=-1), dim=-1)  # (B, N, count)
        return (weights.unsqueeze(-2) @ torch.stack(self._sources, dim=-2)).squeeze(-2)


class PairHistory:
    """Values and tangents of the sub-layer outputs, and of their logits z_m = (k_m . v) / rms(v) for the mixes to come.

    dz_m = (k_m . dv) / rms(v) - z_m mean(v dv) / rms(v)^2.
    """

    def __init__(self, embedding: Tensor, keys: Tensor, eps: float):
        self._shape = embedding.shape
        self._keys = keys
        self._eps = eps
        mixes, width = keys.shape
        self._count = 0
        self._embedding = embedding
        self._values = embedding.new_empty(mixes + 1, 2, embedding[0].numel() // width, width)
        self._logits = embedding.new_empty(mixes, mixes + 1, 2, embedding[0].numel() // width)
        self.append(embedding)

    def append(self, source: Tensor) -> None:
        """Add the pair (2, B, N, C) of a sub-layer's output."""
        source = source.reshape(2, -1, self._shape[-1])
        first = max(self._count - 1, 0)
        value, tangent = source
        rinv = torch.rsqrt(value.square().mean(dim=-1) + self._eps)  # (rows,)
        shrink = (value * tangent).mean(dim=-1).mul_(rinv).mul_(rinv)
        z, dz = ((self._keys[first:] @ source.flatten(0, 1).T).unflatten(1, (2, -1)) * rinv).unbind(1)  # (mixes, rows)
        self._logits[first:, self._count, 0] = z
        self._logits[first:, self._count, 1] = torch.addcmul(dz, z, shrink, value=-1)
        self._values[self._count] = source
        self._count += 1

    def read(self) -> Tensor:
        """The input pair (2, B, N, C) of the next reader: h = sum alpha v, dh = sum alpha dv + dalpha v."""
        count = self._count
        if count == 1:
            return self._embedding
        z, dz = self._logits[count - 2, :count].unbind(1)  # (count, rows)
        weights = torch.softmax(z, dim=0)
        slopes = dz.mul_(weights)
        slopes = torch.addcmul(slopes, weights, slopes.sum(dim=0), value=-1)
        mixed = weighted_sum(torch.cat((weights, weights), dim=1), self._values.flatten(1, 2)).view(
            2, -1, self._shape[-1]
        )
        mixed[1] += weighted_sum(slopes, self._values[:, 0])
        return mixed.view(self._shape)


class SumHistory:
    """The plain pre-norm residual stream: the reader gets the sum of all outputs. Takes pairs as it takes values."""

    def __init__(self, embedding: Tensor):
        self._sum = embedding

    def append(self, source: Tensor) -> None:
        """Add the output (B, N, C) of a sub-layer."""
        self._sum = self._sum + source

    def read(self) -> Tensor:
        """The input (B, N, C) of the next reader."""
        return self._sum
