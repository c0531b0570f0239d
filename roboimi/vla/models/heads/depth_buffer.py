"""The depth history of Attention Residuals in one buffer, with hand-written derivatives.

In plain operations every mix copies all its sources side by side, keeps the copy for the backward pass, and the
backward pass adds up L(L+1)/2 gradients one by one. Here each output is copied once into a buffer (L + 1, rows, C), a
mix reads a part of that buffer in place, and gradients are added up in place in one buffer of the same shape.

That is safe because the state (buffer, logits) is threaded linearly: each operation takes it and returns it, so in the
backward pass exactly one operation at a time owns the state's gradient. Slot i is written once, by the i-th `_Append`.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class BufferedHistory:
    """Same interface and results as `attn_res.DepthHistory`; reverse mode only.

    Args:
        embedding: v_0 (B, N, C).
        keys: (L, C), w * g of the L mixes.
        eps: of the key norms.
    """

    def __init__(self, embedding: Tensor, keys: Tensor, eps: float):
        self._shape = embedding.shape
        self._embedding = embedding
        self._keys = keys
        self._eps = eps
        self._count = 0
        mixes, width = keys.shape
        rows = embedding.numel() // width
        self._values = embedding.new_empty(mixes + 1, rows, width)
        self._logits = embedding.new_empty(mixes, mixes + 1, rows)  # [mix, source, row]
        self.append(embedding)

    def append(self, source: Tensor) -> None:
        """Add the output v_i (B, N, C) of a sub-layer."""
        source = source.reshape(-1, self._shape[-1]).to(self._values.dtype)
        with torch.autocast(source.device.type, enabled=False):
            self._values, self._logits = _Append.apply(
                self._values, self._logits, source, self._keys, self._count, self._eps
            )
        self._count += 1

    def read(self) -> Tensor:
        """The input h (B, N, C) of the next reader."""
        if self._count == 1:
            return self._embedding
        with torch.autocast(self._values.device.type, enabled=False):
            self._values, self._logits, mixed = _Mix.apply(self._values, self._logits, self._count)
        return mixed.view(self._shape)


class _Append(torch.autograd.Function):
    """Write source i into its slot, and its logits z_m = rinv (v . k_m) for the mixes m >= i - 1 that will see it."""

    @staticmethod
    def forward(ctx, values, logits, source, keys, index, eps):
        first = max(index - 1, 0)
        keys = keys[first:]
        rinv = torch.rsqrt(source.square().mean(dim=-1) + eps)  # (rows,)
        z = (keys @ source.T) * rinv  # (mixes, rows)
        values[index] = source
        logits[first:, index] = z
        ctx.mark_dirty(values, logits)
        ctx.save_for_backward(source, keys, rinv, z)
        ctx.index = index
        return values, logits

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_values, grad_logits):
        source, keys, rinv, z = ctx.saved_tensors
        first = max(ctx.index - 1, 0)
        grad_z = grad_logits[first:, ctx.index]
        scaled = grad_z * rinv  # gradient of v . k_m
        shrink = (grad_z * z).sum(dim=0) * rinv.square() / -source.shape[-1]  # through rinv
        grad_source = torch.addcmul(grad_values[ctx.index], source, shrink.unsqueeze(-1)).addmm_(scaled.T, keys)
        grad_keys = scaled @ source
        if first:
            grad_keys = torch.cat((grad_keys.new_zeros(first, grad_keys.shape[1]), grad_keys))
        return grad_values, grad_logits, grad_source, grad_keys, None, None


class _Mix(torch.autograd.Function):
    """h = softmax(logits of this mix) . the first `count` sources; hands the state on."""

    @staticmethod
    def forward(ctx, values, logits, count):
        weights = torch.softmax(logits[count - 2, :count], dim=0)  # (count, rows)
        ctx.mark_dirty(values, logits)
        ctx.values = values.detach()  # by hand: later slots of the buffer are still to be written
        ctx.save_for_backward(weights)
        ctx.logits_shape = logits.shape
        ctx.set_materialize_grads(False)
        return values, logits, weighted_sum(weights, values)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_values, grad_logits, grad_mixed):
        (weights,) = ctx.saved_tensors
        values, count = ctx.values, len(weights)
        if grad_values is None:  # the last mix: nothing read the state after it
            grad_logits = values.new_zeros(ctx.logits_shape)
            grad_values = torch.zeros_like(values) if grad_mixed is None or count < len(values) else None
        if grad_mixed is not None:
            inner = row_products(values[:count], grad_mixed).mul_(weights)
            grad_logits[count - 2, :count] = torch.addcmul(inner, weights, inner.sum(dim=0), value=-1)
            if grad_values is None:
                grad_values = weights.unsqueeze(-1) * grad_mixed
            else:
                grad_values[:count].addcmul_(weights.unsqueeze(-1), grad_mixed)
        return grad_values, grad_logits, None


def weighted_sum(weights: Tensor, values: Tensor) -> Tensor:
    """sum_i weights_i values_i: weights (count, rows), values (at least count, rows, C) -> (rows, C)."""
    count = len(weights)
    if values.is_cuda:  # one launch
        return torch.bmm(weights.T.unsqueeze(1), values[:count].transpose(0, 1)).squeeze(1)
    mixed = values[0] * weights[0].unsqueeze(-1)
    for i in range(1, count):
        mixed.addcmul_(values[i], weights[i].unsqueeze(-1))
    return mixed


def row_products(values: Tensor, other: Tensor) -> Tensor:
    """Inner products of each values_i with `other`: (count, rows, C), (rows, C) -> (count, rows)."""
    if values.is_cuda:
        return torch.bmm(values.transpose(0, 1), other.unsqueeze(-1)).squeeze(-1).T.contiguous()
    products = values.new_empty(values.shape[:2])
    scratch = torch.empty_like(other)  # stays in the processor's cache
    for i, value in enumerate(values):
        torch.sum(torch.mul(value, other, out=scratch), dim=-1, out=products[i])
    return products
