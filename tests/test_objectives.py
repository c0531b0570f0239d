"""The maths of the objectives: MeanFlow identity against a closed form, derivatives, stop-gradient, cost, masks.

The oracle: data x ~ N(mu, s^2) per dimension has the velocity and the flow map in closed form, so the exact average
velocity u(z, r, t) is known, and every sign and tangent in the loss can be checked to machine precision.
"""

import dataclasses

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from roboimi.errors import ConfigError
from roboimi.vla.models.heads import IMFAttnResHead
from roboimi.vla.models.heads.attention import RMSNorm
from roboimi.vla.objectives import OBJECTIVES, ObjectiveConfig, compute, sample_times, time_derivative
from roboimi.vla.sampling import integrate, network_evaluations, sample

MEAN, STD = 0.3, 0.7
B, T, A, TO, C = 8, 4, 3, 2, 5


def _spread(t):
    return ((1 - t) ** 2 * STD**2 + t**2).sqrt()


def _columns(*times):
    return (time[:, None, None] for time in times)


def oracle_velocity(z, t):
    """E[e - x | z_t = z] of the Gaussian."""
    (t,) = _columns(t)
    return -MEAN + (t - (1 - t) * STD**2) / _spread(t) ** 2 * (z - (1 - t) * MEAN)


def oracle_head(z, r, t, cond):
    """Exact average velocity; at r = t the instantaneous one."""
    late, early = torch.maximum(r, t), torch.minimum(r, t)
    same = late - early < 1e-9
    early_column, late_column = _columns(early, late)
    arrived = (1 - early_column) * MEAN + _spread(early_column) / _spread(late_column) * (z - (1 - late_column) * MEAN)
    gap = torch.where(same, torch.ones_like(late), late - early)[:, None, None]
    return torch.where(same[:, None, None], oracle_velocity(z, t), (z - arrived) / gap)


def _batch(rows=B, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    shapes = ((rows, T, A), (rows, T, A), (rows, TO, C))
    x, e, cond = (torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes)
    return MEAN + STD * x, e, cond, torch.ones(rows, T, dtype=torch.bool)


def _times(rows=B, dtype=torch.float64):
    """Half of the rows with r = t."""
    generator = torch.Generator().manual_seed(1)
    t = 0.3 + 0.7 * torch.rand(rows, generator=generator, dtype=dtype)
    r = t * torch.rand(rows, generator=generator, dtype=dtype)
    return torch.cat((t[: rows // 2], r[rows // 2 :])), t


def _network(**options):
    torch.manual_seed(0)
    sizes = {"input_dim": A, "horizon": T, "n_obs_steps": TO, "cond_dim": C, "n_emb": 16, "n_layer": 2, "n_head": 2}
    head = IMFAttnResHead(**sizes, **options).double()
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return head


class TestMeanFlowIdentity:
    def _slope(self, tangent_scale=1.0, tangent=None):
        x, e, cond, _ = _batch()
        t = torch.linspace(0.3, 0.95, B, dtype=torch.float64)
        r = t * torch.linspace(0.1, 0.8, B, dtype=torch.float64)
        (column,) = _columns(t)
        z = (1 - column) * x + column * e
        v = oracle_velocity(z, t) if tangent is None else tangent(x, e)
        u = oracle_head(z, r, t, cond)
        slope = time_derivative(oracle_head, z, r, t, cond, tangent_scale * v)
        return u, (t - r)[:, None, None], slope, oracle_velocity(z, t)

    def test_the_exact_average_velocity_satisfies_it(self):
        u, gap, slope, v = self._slope()
        torch.testing.assert_close(u + gap * slope, v, rtol=0, atol=1e-10)

    def test_the_conditional_velocity_as_tangent_does_not(self):
        u, gap, slope, v = self._slope(tangent=lambda x, e: e - x)
        assert (u + gap * slope - v).square().mean() > 1e-3

    def test_the_other_sign_does_not(self):
        u, gap, slope, v = self._slope()
        assert (u - gap * slope - v).square().mean() > 1e-2

    def test_a_tangent_on_r_does_not(self):
        x, e, cond, _ = _batch()
        r, t = (torch.linspace(*ends, B, dtype=torch.float64) for ends in ((0.1, 0.5), (0.6, 0.95)))
        (column,) = _columns(t)
        z = (1 - column) * x + column * e
        v = oracle_velocity(z, t)
        primals, tangents = (z, r, t), (v, torch.ones_like(r), torch.ones_like(t))
        slope = torch.func.jvp(lambda z, r, t: oracle_head(z, r, t, cond), primals, tangents)[1]
        assert (oracle_head(z, r, t, cond) + (t - r)[:, None, None] * slope - v).square().mean() > 1e-2

    def test_the_imf_residual_of_the_exact_solution_is_the_irreducible_part(self):
        """V = v exactly, so the loss is E (v - (e - x))^2 over the very rows, whatever r."""
        x, e, cond, mask = _batch()
        r, t = _times()
        _, metrics = compute(oracle_head, x, cond, mask, ObjectiveConfig("imf"), noise=e, times=(r, t))
        (column,) = _columns(t)
        expected = (oracle_velocity((1 - column) * x + column * e, t) - (e - x)).square().mean()
        torch.testing.assert_close(metrics["mse"], expected, rtol=0, atol=1e-10)

    def test_one_step_is_exact(self):
        _, e, cond, _ = _batch()
        for steps in (1, 2, 5):
            torch.testing.assert_close(integrate(oracle_head, e, cond, steps), MEAN + STD * e, rtol=0, atol=1e-10)

    def test_one_euler_step_of_the_velocity_is_not(self):
        """Negative control: flow matching needs many steps where MeanFlow needs one."""
        _, e, cond, _ = _batch()
        exact = MEAN + STD * e
        one, many = (integrate(oracle_head, e, cond, steps, instantaneous=True) for steps in (1, 1000))
        assert (one - exact).abs().max() > 0.1
        assert (many - exact).abs().max() < 5e-3


class TestDerivatives:
    @pytest.mark.parametrize("parameterization", ["u", "x"])
    @pytest.mark.parametrize("attn_res", [True, False])
    def test_jvp_of_the_head_equals_central_differences(self, parameterization, attn_res):
        head = _network(parameterization=parameterization, attn_res=attn_res)
        _, z, cond, _ = _batch()
        r, t = _times()
        v = torch.randn(z.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        slope = time_derivative(head, z, r, t, cond, v)
        h = 1e-4
        with torch.no_grad():  # fourth order: the error is h^4
            f = [head(z + k * h * v, r, t + k * h, cond) for k in (-2, -1, 1, 2)]
        difference = (f[0] - 8 * f[1] + 8 * f[2] - f[3]) / (12 * h)
        assert (slope - difference).norm() / difference.norm() < 1e-8

    @pytest.mark.parametrize("parameterization", ["u", "x"])
    @pytest.mark.parametrize("options", [{}, {"attn_res": False}, {"rope": False, "n_kv_head": 1}], ids=str)
    def test_the_written_jvp_of_the_head_is_that_of_torch(self, parameterization, options):
        head = _network(parameterization=parameterization, **options)
        _, z, cond, _ = _batch()
        r, t = _times()
        t[-1], r[-1] = 0.04, 0.01  # below the smallest time that x divides by
        v = torch.randn(z.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        expected = time_derivative(lambda *inputs: head(*inputs), z, r, t, cond, v)
        torch.testing.assert_close(time_derivative(head, z, r, t, cond, v), expected, rtol=1e-10, atol=1e-10)
        assert not expected.requires_grad

    def test_the_training_step_uses_the_written_jvp(self, monkeypatch):
        head, (x, e, cond, mask) = _network(), _batch()
        rows = []
        written = head.jvp
        monkeypatch.setattr(head, "jvp", lambda z, *rest: rows.append(len(z)) or written(z, *rest))
        values = [
            compute(h, x, cond, mask, ObjectiveConfig(), noise=e, times=_times())[0]
            for h in (head, lambda *i: head(*i))
        ]
        assert rows == [B // 2]
        torch.testing.assert_close(values[0], values[1], rtol=0, atol=1e-12)

    def _single_pass(self, head, x, e, cond, mask, r, t, *, stop_gradient=True):
        """The whole loss in one graph, rows with r = t included: what the two-pass form must equal."""
        head.mixes.buffered = False  # plain operations have derivatives of both modes
        for module in head.modules():
            if isinstance(module, RMSNorm):
                module.hand_written = False
        (column,) = _columns(t)
        z = (1 - column) * x + column * e
        v = head(z, t, t, cond).detach()
        with sdpa_kernel(SDPBackend.MATH):
            u, slope = torch.func.jvp(lambda z, t: head(z, r, t, cond), (z, t), (v, torch.ones_like(t)))
        slope = slope.detach() if stop_gradient else slope
        return (u + (t - r)[:, None, None] * slope - (e - x)).square().mean()

    def _gradients(self, loss, head, cond):
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, [*head.parameters(), cond])])

    def _both(self, **options):
        head = _network()
        x, e, cond, mask = _batch()
        cond.requires_grad_()
        r, t = _times()
        loss, _ = compute(head, x, cond, mask, ObjectiveConfig("imf"), noise=e, times=(r, t))
        gradients = self._gradients(loss, head, cond)
        other = self._single_pass(head, x, e, cond, mask, r, t, **options)
        return loss, gradients, other, self._gradients(other, head, cond)

    def test_two_passes_equal_one(self):
        loss, gradients, single, single_gradients = self._both()
        torch.testing.assert_close(loss, single, rtol=0, atol=1e-10)
        torch.testing.assert_close(gradients, single_gradients, rtol=1e-8, atol=1e-9)

    def test_a_missing_stop_gradient_shows_in_the_gradient_and_not_in_the_value(self):
        loss, gradients, leaking, leaking_gradients = self._both(stop_gradient=False)
        torch.testing.assert_close(loss, leaking, rtol=0, atol=1e-10)
        assert (gradients - leaking_gradients).norm() / gradients.norm() > 0.01

    def test_the_gradient_is_that_of_u_against_a_constant_target(self):
        """d loss = 2 (V - (e - x)) du / n: neither the tangent nor du/dt carries a gradient."""
        head = _network()
        x, e, cond, mask = _batch()
        r, t = _times()
        (column,) = _columns(t)
        z = (1 - column) * x + column * e
        v = head(z, t, t, cond).detach()
        target = e - x - (t - r)[:, None, None] * time_derivative(head, z, r, t, cond, v)
        parameters = list(head.parameters())
        expected = torch.autograd.grad((head(z, r, t, cond) - target).square().mean(), parameters)
        loss, _ = compute(head, x, cond, mask, ObjectiveConfig("imf"), noise=e, times=(r, t))
        for got, wanted in zip(torch.autograd.grad(loss, parameters), expected, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-8, atol=1e-10)

    def test_meanflow_and_imf_coincide_under_the_same_tangent(self):
        """A head whose u(z, t, t) happens to be e - x gives both the same tangent."""
        network, (x, e, cond, mask), (r, t) = _network(), _batch(), _times()

        def head(z, r, t, cond):
            below = (r < t).to(z.dtype)[:, None, None]
            rows = slice(B - len(z), None)  # the sub-batch with r < t is the last one
            return below * network(z, r, t, cond) + (1 - below) * (e - x)[rows]

        values = [
            compute(head, x, cond, mask, ObjectiveConfig(name), noise=e, times=(r, t))[0]
            for name in ("imf", "meanflow")
        ]
        gradients = [torch.autograd.grad(value, list(network.parameters())) for value in values]
        torch.testing.assert_close(values[0], values[1], rtol=0, atol=1e-12)
        torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=1e-12)

    def test_meanflow_and_imf_differ_otherwise(self):
        network, (x, e, cond, mask), (r, t) = _network(), _batch(), _times()
        values = [
            compute(network, x, cond, mask, ObjectiveConfig(name), noise=e, times=(r, t))[0]
            for name in ("imf", "meanflow")
        ]
        assert (values[0] - values[1]).abs() > 1e-3


class _Counting:
    """A head that notes the rows of each call and whether forward mode was on."""

    def __init__(self, head):
        self.head, self.calls = head, []

    def __call__(self, z, r, t, cond):
        kind = "jvp" if torch._C._functorch.is_functorch_wrapped_tensor(z) else "plain"
        self.calls.append((kind, len(z), torch.is_grad_enabled()))
        return self.head(z, r, t, cond)


class TestCost:
    @pytest.mark.parametrize(("fraction", "below"), [(0.5, 4), (0.25, 2), (1.0, 8)])
    def test_only_rows_with_r_below_t_pay_for_a_jvp(self, fraction, below):
        x, _, cond, mask = _batch()
        head = _Counting(_network())
        compute(head, x, cond, mask, ObjectiveConfig("imf", jvp_fraction=fraction))
        assert head.calls == [("plain", below, False), ("jvp", below, False), ("plain", B, True)]

    def test_without_such_rows_there_is_none(self):
        x, _, cond, mask = _batch()
        head = _Counting(_network())
        _, metrics = compute(head, x, cond, mask, ObjectiveConfig("imf", jvp_fraction=0.0))
        assert head.calls == [("plain", B, True)]
        assert set(metrics) == {"mse", "mse_equal"}

    @pytest.mark.parametrize(
        ("name", "steps", "calls"), [("imf", 1, 1), ("imf", 4, 4), ("flow", 2, 2), ("regression", 4, 1), ("mip", 4, 2)]
    )
    def test_network_evaluations_of_a_sample(self, name, steps, calls):
        _, e, cond, _ = _batch()
        head = _Counting(_network())
        config = ObjectiveConfig(name)
        sample(head, e, cond, config, steps)
        assert len(head.calls) == calls == network_evaluations(config, steps)


class TestEveryObjective:
    @pytest.mark.parametrize("name", sorted(OBJECTIVES))
    def test_loss_is_finite_and_every_parameter_that_is_read_gets_a_gradient(self, name):
        head = _network(parameterization="x")
        x, _, cond, mask = _batch()
        cond.requires_grad_()
        loss, metrics = compute(head, x, cond, mask, ObjectiveConfig(name), generator=torch.Generator().manual_seed(0))
        loss.backward()
        assert loss.shape == ()
        assert torch.isfinite(loss)
        assert cond.grad.abs().max() > 0
        assert all(metric.shape == () and not metric.requires_grad for metric in metrics.values())

    @pytest.mark.parametrize("name", sorted(OBJECTIVES))
    def test_padded_actions_change_neither_loss_nor_gradient(self, name):
        """A head that keeps the steps of a chunk apart: what lies under the mask must not matter."""
        weight = torch.randn(A, A, dtype=torch.float64, generator=torch.Generator().manual_seed(3), requires_grad=True)

        def head(z, r, t, cond):
            return torch.tanh(z @ weight) + (t - r)[:, None, None] + cond.mean(dim=(1, 2))[:, None, None]

        x, e, cond, mask = _batch()
        mask[1, 2:], mask[5, 1:] = False, False
        results = []
        for garbage in (0.0, 7.0):
            padded = torch.where(mask[..., None], x, garbage)
            loss, _ = compute(head, padded, cond, mask, ObjectiveConfig(name), noise=e, times=_times())
            results.append((loss, *torch.autograd.grad(loss, weight)))
        torch.testing.assert_close(results[0], results[1], rtol=0, atol=1e-12)

    def test_the_loss_is_the_mean_over_unpadded_entries(self):
        x, e, cond, mask = _batch()
        mask[0, 1:] = False
        loss, _ = compute(_network(), x, cond, mask, config := ObjectiveConfig("regression"))
        with torch.no_grad():
            error = (sample(_network(), e, cond, config) - x).square()
        torch.testing.assert_close(loss.detach(), error[mask].mean(), rtol=0, atol=1e-12)

    @pytest.mark.parametrize("name", ["imf", "meanflow", "flow", "mip"])
    def test_the_generator_decides_noise_and_times(self, name):
        x, _, cond, mask = _batch()
        head = _network()

        def loss(seed):
            return compute(head, x, cond, mask, ObjectiveConfig(name), generator=torch.Generator().manual_seed(seed))[0]

        assert loss(0) == loss(0)
        assert loss(0) != loss(1)

    @pytest.mark.parametrize("power", [0.5, 1.0])
    def test_the_adaptive_weight_scales_rows_and_leaves_the_metric_alone(self, power):
        x, e, cond, mask = _batch()
        head, times = _network(), _times()
        _, plain = compute(head, x, cond, mask, ObjectiveConfig("imf"), noise=e, times=times)
        loss, metrics = compute(head, x, cond, mask, ObjectiveConfig("imf", adaptive_power=power), noise=e, times=times)
        torch.testing.assert_close(metrics, plain, rtol=0, atol=0)
        assert (loss - plain["mse"]).abs() > 1e-3
        if power == 1.0:
            assert 0.9 < loss < 1  # S / (S + c): useless as a measure of progress

    def test_the_metric_is_split_by_rows(self):
        x, e, cond, mask = _batch()
        _, metrics = compute(_network(), x, cond, mask, ObjectiveConfig("imf"), noise=e, times=_times())
        torch.testing.assert_close(metrics["mse"], (metrics["mse_equal"] + metrics["mse_below"]) / 2)


class TestSampling:
    @pytest.mark.parametrize("name", sorted(OBJECTIVES))
    def test_noise_decides_the_sample(self, name):
        _, e, cond, _ = _batch()
        head, config = _network(), ObjectiveConfig(name)
        torch.testing.assert_close(sample(head, e, cond, config, 2), sample(head, e, cond, config, 2), rtol=0, atol=0)
        moved = (sample(head, e + 1, cond, config, 2) - sample(head, e, cond, config, 2)).abs().max()
        assert (moved == 0) == (name in {"regression", "mip"})

    def test_nothing_is_clamped_between_steps(self):
        _, e, cond, _ = _batch()
        seen = []

        def head(z, r, t, cond):
            seen.append(z)
            return torch.full_like(z, -10.0)

        chunk = integrate(head, e, cond, 4)
        torch.testing.assert_close(chunk, e + 10.0)
        assert max(z.abs().max() for z in seen) > 7

    def test_the_grid_goes_from_noise_to_data(self):
        _, e, cond, _ = _batch()
        seen = []

        def head(z, r, t, cond):
            seen.append((float(t[0]), float(r[0])))
            return z

        integrate(head, e, cond, 4)
        assert seen == [(1.0, 0.75), (0.75, 0.5), (0.5, 0.25), (0.25, 0.0)]


class TestTimes:
    def test_logit_normal_pairs_are_sorted_and_the_first_half_is_equal(self):
        x = torch.zeros(4000, T, A, dtype=torch.float64)
        r, t = sample_times(x, ObjectiveConfig(), torch.Generator().manual_seed(0))
        assert (r[:2000] == t[:2000]).all()
        assert (r[2000:] < t[2000:]).all()
        assert r.dtype == torch.float64
        logits = torch.logit(torch.cat((r[2000:], t[2000:])))  # the two draws of a row, unsorted again
        assert logits.mean() == pytest.approx(-0.4, abs=0.06)
        assert logits.std() == pytest.approx(1.0, abs=0.06)

    def test_uniform(self):
        config = ObjectiveConfig(time_sampler="uniform", jvp_fraction=1.0)
        r, t = sample_times(torch.zeros(4000, T, A), config, torch.Generator().manual_seed(0))
        assert (r.mean(), t.mean()) == (pytest.approx(1 / 3, abs=0.02), pytest.approx(2 / 3, abs=0.02))

    @pytest.mark.parametrize(("rows", "equal"), [(1, 1), (3, 1), (7, 3), (64, 32)])
    def test_odd_batches(self, rows, equal):
        r, t = sample_times(torch.zeros(rows, T, A), ObjectiveConfig(), torch.Generator().manual_seed(0))
        assert int((r == t).sum()) == equal


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "ddim"}, "Unknown objective 'ddim'"),
        ({"time_sampler": "beta"}, "Unknown time_sampler"),
        ({"jvp_fraction": 1.5}, "jvp_fraction"),
        ({"mip_time": 0.0}, "mip_time"),
    ],
)
def test_constants_that_cannot_work_are_refused(change, words):
    with pytest.raises(ConfigError, match=words):
        dataclasses.replace(ObjectiveConfig(), **change)
