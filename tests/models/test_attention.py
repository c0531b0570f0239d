"""Sub-layers of the head: grouped queries, rotary positions, refusals."""

import pytest
import torch
import torch.nn.functional as F

from roboimi.errors import ConfigError
from roboimi.vla.models.heads.attention import RMSNorm, SelfAttention, SwiGLU, attend, rotary_angles, rotate


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_attention_is_that_of_the_library_with_grouped_heads(kv_heads):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, heads, 5, 6, dtype=torch.float64) for heads in (4, kv_heads, kv_heads))
    expected = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    torch.testing.assert_close(attend(q, k, v), expected, rtol=0, atol=1e-12)


def test_rotary_products_depend_on_the_distance_only():
    cos, sin = (table.double() for table in rotary_angles(8, 6))
    torch.manual_seed(0)
    q, k = torch.randn(2, 6, dtype=torch.float64)
    products = rotate(q.expand(8, 6), cos, sin) @ rotate(k.expand(8, 6), cos, sin).T  # [i, j]
    torch.testing.assert_close(products[3, 1], products[7, 5], rtol=0, atol=1e-6)
    assert (products[3, 1] - products[3, 2]).abs() > 1e-3
    torch.testing.assert_close(products[0, 0], q @ k)


def test_attention_is_not_causal_and_positions_matter_only_through_the_rotation():
    torch.manual_seed(0)
    x = torch.randn(1, 6, 16)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    plain, turned = SelfAttention(16, 2), SelfAttention(16, 2, num_tokens=6)
    torch.testing.assert_close(plain(x[:, order]), plain(x)[:, order])
    assert (turned(x[:, order]) - turned(x)[:, order]).abs().max() > 1e-3
    later = x.clone()
    later[:, -1] += 1
    assert (plain(later) - plain(x))[:, 0].abs().max() > 1e-4


@pytest.mark.parametrize(
    ("sizes", "words"),
    [((10, 3), "n_emb=10"), ((12, 4, 3), "n_kv_head=3"), ((12, 4, 4, 6), "even width")],
)
def test_heads_that_do_not_divide_are_refused(sizes, words):
    with pytest.raises(ConfigError, match=words):
        SelfAttention(*sizes)


def test_norm_and_feed_forward_keep_float64():
    x = torch.randn(2, 3, 12, dtype=torch.float64)
    norm, swiglu = RMSNorm(12).double(), SwiGLU(12).double()
    assert norm(x).dtype == swiglu(x).dtype == torch.float64
    torch.testing.assert_close(norm(x).square().mean(-1), torch.ones(2, 3, dtype=torch.float64), rtol=0, atol=1e-4)
    assert swiglu.gate_up.out_features == 2 * 32  # 8/3 of 12


def test_the_written_derivative_of_the_norm_is_that_of_the_library():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, dtype=torch.float64, requires_grad=True)
    written, library = RMSNorm(8, eps=0.1).double(), RMSNorm(8, eps=0.1, hand_written=False).double()
    results = []
    for norm in (written, library):
        torch.nn.init.constant_(norm.weight, 1.5)
        output = norm(x)
        results.append((output, *torch.autograd.grad(output.sin().sum(), [x, norm.weight])))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=1e-12)
    assert "RowNorm" in written(x).grad_fn.name()
