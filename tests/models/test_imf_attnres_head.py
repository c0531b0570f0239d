"""The action head: shapes, size, what it reads, and the starts of its two parameterizations."""

import pytest
import torch

from roboimi.errors import ConfigError
from roboimi.vla.models.heads import IMFAttnResHead

SIZES = {"input_dim": 3, "horizon": 6, "n_obs_steps": 2, "cond_dim": 5, "n_emb": 24, "n_layer": 2, "n_head": 2}


def _inputs(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    z, cond = (torch.randn(*shape, generator=generator, dtype=dtype) for shape in ((4, 6, 3), (4, 2, 5)))
    return z, torch.tensor([0.0, 0.1, 0.3, 0.5], dtype=dtype), torch.tensor([1.0, 0.6, 0.3, 0.9], dtype=dtype), cond


def _shaken(**options):
    torch.manual_seed(0)
    head = IMFAttnResHead(**SIZES, **options).double()
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return head


def test_the_base_size_is_the_requested_one():
    head = IMFAttnResHead(input_dim=14, horizon=16, n_obs_steps=2)
    assert sum(p.numel() for p in head.parameters()) == pytest.approx(22e6, rel=0.02)
    assert len(head.sublayers) == 24
    assert head.sublayers[0].head_dim == 64
    assert head.mixes.query.shape == (24, 384)


@pytest.mark.parametrize("parameterization", ["u", "x"])
@pytest.mark.parametrize("attn_res", [True, False])
def test_shape_and_dtype(parameterization, attn_res):
    inputs = _inputs()
    output = _shaken(parameterization=parameterization, attn_res=attn_res)(*inputs)
    assert output.shape == inputs[0].shape
    assert output.dtype == torch.float64


@pytest.mark.parametrize("changed", [0, 1, 2, 3])
def test_the_output_depends_on_each_input_and_no_row_on_another(changed):
    head, inputs = _shaken(), list(_inputs())
    before = head(*inputs)
    inputs[changed] = inputs[changed].clone()
    inputs[changed][1] += 0.05
    difference = (head(*inputs) - before).abs().amax(dim=(1, 2))
    assert difference[1] > 1e-5
    assert difference[[0, 2, 3]].max() < 1e-12


def test_r_and_t_have_embedders_of_their_own():
    head = _shaken()
    z, r, t, cond = _inputs()
    assert (head(z, r, t, cond) - head(z, t, r, cond)).abs().max() > 1e-4


def test_times_enter_unscaled():
    """du/dt grows with the frequencies; the fastest turns by one radian from data to noise."""
    assert IMFAttnResHead(**SIZES).t_embedding.frequencies.max() == 1


def test_u_starts_at_zero():
    assert IMFAttnResHead(**SIZES).double()(*_inputs()).abs().max() == 0


def test_x_starts_as_a_function_of_the_condition_alone():
    torch.manual_seed(0)
    head = IMFAttnResHead(**SIZES, parameterization="x", zero_init_noise_path=True).double()

    def clean(z, r, t, cond):
        return z - t.clamp(min=0.05)[:, None, None] * head(z, r, t, cond)

    z, r, t, cond = _inputs()
    reference = clean(z, r, t, cond)
    torch.testing.assert_close(clean(z + 1, r / 2, t / 2, cond), reference, rtol=0, atol=1e-12)
    assert (clean(z, r, t, cond + 1) - reference).abs().max() > 1e-3
    assert (reference[:, 0] - reference[:, 1]).abs().max() > 1e-3  # steps of a chunk differ by their positions


def test_both_histories_give_the_same_head():
    head, inputs = _shaken(n_kv_head=1), _inputs()
    results = []
    for buffered in (True, False):
        head.mixes.buffered = buffered
        output = head(*inputs)
        results.append((output, torch.autograd.grad(output.sin().sum(), list(head.parameters()))))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=1e-10)


def test_it_runs_under_bfloat16_autocast_with_gradients():
    torch.manual_seed(0)
    head = IMFAttnResHead(**SIZES, parameterization="x")
    inputs = _inputs(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        output = head(*inputs)
    output.float().square().mean().backward()
    assert (output - head(*inputs)).norm() / output.norm() < 0.05
    assert all(torch.isfinite(p.grad).all() for p in head.parameters())
    assert head.mixes.query.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("options", "words"),
    [({"n_head": 5}, "n_head=5"), ({"n_head": 8}, "even width"), ({"parameterization": "v"}, "parameterization 'v'")],
)
def test_sizes_that_cannot_work_are_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        IMFAttnResHead(**{**SIZES, **options})
