"""Faster float32 matrix products on CPUs where the default library is slow.

PyTorch sends float32 products to MKL, which on AMD processors reaches half of what oneDNN does: 95 and 200 GFLOP/s a
core measured. oneDNN is chosen by *allowing* it to round to bfloat16; without matrix tiles (AMX) it was seen to make no
use of that and to compute in full float32. So the switch is tried, and kept only where products stay exact.
"""

import contextlib
from collections.abc import Iterator

import torch

EXACT = 1e-6
"""Largest relative error (Frobenius) of a product of this size that float32 rounding explains."""


@contextlib.contextmanager
def fast_float32_products() -> Iterator[bool]:
    """Within the block float32 products on the CPU go to oneDNN, if that changes no digit that matters.

    For training: with few rows (inference of one observation) oneDNN is slower. CUDA is not affected.

    Yields:
        Whether oneDNN is in use.
    """
    before = torch.backends.mkldnn.matmul.fp32_precision
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    try:
        exact = _products_are_exact()
        if not exact:
            torch.backends.mkldnn.matmul.fp32_precision = before
        yield exact
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = before


def _products_are_exact() -> bool:
    generator = torch.Generator().manual_seed(0)
    for rows, inner, columns in ((1280, 128, 384), (640, 384, 1024), (128, 1280, 384)):
        a = torch.randn(rows, inner, generator=generator)
        b = torch.randn(inner, columns, generator=generator)
        exact = a.double() @ b.double()
        if (a @ b - exact).norm() > EXACT * exact.norm():
            return False
    return True
