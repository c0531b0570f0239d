"""The faster products of the CPU: exact to float32, and switched off again."""

import torch

from roboimi.vla import cpu_matmul
from roboimi.vla.cpu_matmul import fast_float32_products


def _setting():
    return torch.backends.mkldnn.matmul.fp32_precision


def test_products_stay_float32_and_the_setting_is_restored():
    before = _setting()
    a, b = torch.randn(300, 200), torch.randn(200, 100)
    with fast_float32_products():
        error = (a @ b).double() - a.double() @ b.double()
    assert error.norm() / (a @ b).norm() < 1e-6
    assert _setting() == before


def test_where_products_would_be_rounded_nothing_changes(monkeypatch):
    monkeypatch.setattr(cpu_matmul, "EXACT", 0.0)  # no rounding is small enough
    before = _setting()
    with fast_float32_products() as used:
        assert not used
        assert _setting() == before
