"""Attention Residuals: the paper's mix, its zero-query invariant, one mix a sub-layer, and hand-written derivatives."""

import pytest
import torch
from torch import nn

from roboimi.vla.models.heads.attention import RMSNorm
from roboimi.vla.models.heads.attn_res import AttnRes, DepthHistory, SumHistory
from roboimi.vla.models.heads.depth_buffer import BufferedHistory

SUBLAYERS, WIDTH = 5, 8


def _naive_mix(sources, query, gain, eps):
    """The formula as printed: normalise every source for this mix, then softmax over depth."""
    values = torch.stack(sources)  # (sources, B, N, C)
    keys = values * torch.rsqrt(values.square().mean(-1, keepdim=True) + eps) * gain
    weights = torch.softmax((keys * query).sum(-1), dim=0)
    return (weights.unsqueeze(-1) * values).sum(0)


def _sources(count):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, 3, WIDTH, generator=generator, dtype=torch.float64) for _ in range(count)]


def _random_mixes():
    torch.manual_seed(0)
    mixes = AttnRes(SUBLAYERS, WIDTH, eps=1e-3).double()
    nn.init.normal_(mixes.query)
    nn.init.normal_(mixes.key_gain)
    return mixes


@pytest.mark.parametrize("kind", [DepthHistory, BufferedHistory])
def test_the_cached_norm_form_is_the_papers_formula(kind):
    mixes, sources = _random_mixes(), _sources(SUBLAYERS + 1)
    history = kind(sources[0], mixes.query * mixes.key_gain, mixes.eps)
    torch.testing.assert_close(history.read(), sources[0], rtol=0, atol=0)
    for count in range(2, SUBLAYERS + 2):
        history.append(sources[count - 1])
        expected = _naive_mix(sources[:count], mixes.query[count - 2], mixes.key_gain[count - 2], mixes.eps)
        torch.testing.assert_close(history.read(), expected, rtol=0, atol=1e-12)


def _run(history, layers):
    """Gradients reach every source through every later mix."""
    for layer in layers:
        history.append(layer(history.read()))
    return history.read()


def test_the_buffer_has_the_derivatives_of_the_plain_operations():
    mixes, (embedding,) = _random_mixes(), _sources(1)
    layers = [nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()).double() for _ in range(SUBLAYERS)]
    parameters = [*mixes.parameters(), *(p for layer in layers for p in layer.parameters())]
    results = []
    for kind in (DepthHistory, BufferedHistory):
        start = embedding.clone().requires_grad_()
        output = _run(kind(start, mixes.query * mixes.key_gain, mixes.eps), layers)
        results.append((output, torch.autograd.grad(output.sin().sum(), [start, *parameters])))
    (plain, plain_grads), (buffered, buffered_grads) = results
    torch.testing.assert_close(buffered, plain, rtol=0, atol=1e-12)
    for got, expected in zip(buffered_grads, plain_grads, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


def test_the_buffers_derivatives_are_those_of_finite_differences():
    def network(embedding, query, gain):
        return _run(BufferedHistory(embedding, query * gain, 1e-3), [torch.sin, torch.tanh, torch.cos])

    torch.manual_seed(0)
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((1, 2, 4), (3, 4), (3, 4))]
    assert torch.autograd.gradcheck(network, inputs)


def test_zero_queries_are_the_plain_prenorm_residual_network():
    torch.manual_seed(0)
    norms = [RMSNorm(WIDTH, eps=1e-12).double() for _ in range(SUBLAYERS + 1)]
    layers = [nn.Sequential(norm, nn.Linear(WIDTH, WIDTH), nn.Tanh()).double() for norm in norms[:-1]]
    (embedding,) = _sources(1)
    plain = norms[-1](_run(SumHistory(embedding), layers))
    mixes = AttnRes(SUBLAYERS, WIDTH).double()
    mixed = norms[-1](_run(mixes.history(embedding), layers))
    torch.testing.assert_close(mixed, plain, rtol=0, atol=1e-9)
    nn.init.normal_(mixes.query)  # control: the equality is the zero's doing
    assert (norms[-1](_run(mixes.history(embedding), layers)) - plain).abs().max() > 1e-2


def test_there_is_one_mix_per_sublayer_but_the_first_and_one_at_the_readout():
    torch.manual_seed(0)
    mixes = AttnRes(SUBLAYERS, WIDTH).double()
    assert mixes.query.shape == mixes.key_gain.shape == (SUBLAYERS, WIDTH)
    layers = [nn.Sequential(RMSNorm(WIDTH), nn.Linear(WIDTH, WIDTH)).double() for _ in range(SUBLAYERS)]
    _run(mixes.history(_sources(1)[0]), layers).sin().sum().backward()
    assert (mixes.query.grad.abs().amax(-1) > 1e-6).all()  # every mix is read, none sees a single source
    assert mixes.key_gain.grad.abs().max() == 0  # at zero queries


def test_a_training_pass_keeps_no_copy_of_the_sources_per_mix():
    """What the backward pass holds grows with L, not with L^2."""

    def saved_bytes(count):
        keys = torch.zeros(count, 64, requires_grad=True)
        seen = {}

        def note(tensor):
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        start = torch.randn(4, 16, 64, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            _run(BufferedHistory(start, keys, 1e-6), [torch.sin] * count)
        return sum(seen.values())

    assert saved_bytes(32) < 2.5 * saved_bytes(16)


def test_without_a_graph_and_in_forward_mode_the_plain_operations_run():
    mixes, (embedding,) = _random_mixes(), _sources(1)
    assert isinstance(mixes.history(embedding), BufferedHistory)
    with torch.no_grad():
        assert isinstance(mixes.history(embedding), DepthHistory)
        tangent = torch.randn_like(embedding)

        def network(start):
            return _run(mixes.history(start), [torch.sin, torch.tanh])

        slope = torch.func.jvp(network, (embedding,), (tangent,))[1]
        step = 1e-6
        difference = (network(embedding + step * tangent) - network(embedding - step * tangent)) / (2 * step)
    torch.testing.assert_close(slope, difference, rtol=0, atol=1e-8)
