"""Attention Residuals, full form (arXiv 2603.15031): each sub-layer reads a learned mix of all earlier outputs.

With v_0 the token embedding and v_i = f_i(norm_i(h_i)) the output of sub-layer i, the input of sub-layer l is

    h_l = sum_{i<l} alpha_{i->l} v_i,      alpha_{i->l} = softmax over i of  w_l . rmsnorm_l(v_i)

per token: keys are RMS-normalised with a gain g_l, values are the raw v_i, nothing is added on top. w_l starts at zero,
which is the uniform average; as every reader of h_l is scale-invariant (pre-norm), the network then equals the plain
pre-norm residual network. Sub-layer 1 sees v_0 alone, so its mix is left out; the read-out has one.

The normalised keys are never built: w_l . rmsnorm_l(v_i) = ((w_l * g_l) . v_i) * rinv_i, where rinv_i = 1 / rms(v_i) does
not depend on l and is computed once, and one matrix product gives the logits of a source for all the mixes to come.

A depth history has two methods: `read()` gives the input of the next reader, `append(v)` adds an output.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from roboimi.vla.models.heads.depth_buffer import BufferedHistory


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


class SumHistory:
    """The plain pre-norm residual stream: the reader gets the sum of all outputs."""

    def __init__(self, embedding: Tensor):
        self._sum = embedding

    def append(self, source: Tensor) -> None:
        """Add the output (B, N, C) of a sub-layer."""
        self._sum = self._sum + source

    def read(self) -> Tensor:
        """The input (B, N, C) of the next reader."""
        return self._sum
