"""The likelihood against data whose density is known: Gaussian, and bytes with known probabilities."""

import math

import pytest
import torch
from conftest import GaussianDenoiser
from torch import nn
from torch.distributions import Normal, kl_divergence

from ddpm_lightning.diffusion.guidance import Clipped
from ddpm_lightning.diffusion.likelihood import (
    chance_of_times,
    flow_bound,
    flow_log_density,
    flow_slope,
    flow_times,
    prior_term,
    reverse_term,
    spread_times,
)
from ddpm_lightning.diffusion.schedules.cosine import CosineSchedule
from ddpm_lightning.diffusion.schedules.linear import LinearSchedule

LAM = 0.25
GREYS = torch.arange(256) / 127.5 - 1


def exact_moments(*shape):
    """Data N(0, LAM) and noise N(0, 1) whose second moments are exactly so: means of squares are without chance."""
    x_0, noise = torch.linalg.qr(torch.randn(math.prod(shape), 2, dtype=torch.float64)).Q.T * math.prod(shape) ** 0.5
    return (LAM**0.5 * x_0).float().view(shape), noise.float().view(shape)


def signs(x):
    return [2.0 * torch.randint(0, 2, x.shape).to(x) - 1]


class BytesDenoiser:
    """E[x_0 | x_t] for pixels that take each of the 256 values with a known probability."""

    def __init__(self, schedule, probabilities):
        self.schedule = schedule
        self.log_p = probabilities.log().float()

    def __call__(self, x_t, t, label=None):
        alpha, sigma = (scale.unsqueeze(-1).to(x_t) for scale in self.schedule(t).like(x_t))
        posterior = (self.log_p - (x_t[..., None] - alpha * GREYS) ** 2 / (2 * sigma**2)).softmax(-1)
        return (posterior * GREYS).sum(-1)


@pytest.fixture
def bytes_and_bits():
    """8-bit Gaussian pixels' probabilities, images of them, and these images' exact bits per dimension."""
    normal, greys = Normal(0.0, 0.25), GREYS.double()
    p = normal.cdf(greys + 1 / 255) - normal.cdf(greys - 1 / 255)
    p = p / p.sum()
    values = torch.multinomial(p, 20 * 64, replacement=True)
    return p, (values.float() / 127.5 - 1).view(20, 1, 8, 8), -p.log2()[values].mean().item()


@pytest.mark.parametrize("schedule", [LinearSchedule(), CosineSchedule(), LinearSchedule(50, 1e-4, 1e-3)])
def test_the_prior_term_is_the_divergence_from_standard_normal_noise(schedule):
    x_0 = torch.rand(5, 3, 4, 4) * 2 - 1
    alpha, sigma = schedule(schedule.num_steps)
    kl = kl_divergence(Normal(alpha * x_0.double(), sigma), Normal(torch.zeros(()).double(), 1.0))
    torch.testing.assert_close(
        prior_term(schedule, x_0).double(), kl.mean((1, 2, 3)) / math.log(2), rtol=1e-3, atol=1e-9
    )


@pytest.mark.parametrize("kind", ["small", "large"])
@pytest.mark.parametrize("schedule", [LinearSchedule(60), CosineSchedule(60)])
def test_each_divergence_of_gaussian_data_is_its_closed_form(schedule, kind):
    denoiser, alpha_bar = GaussianDenoiser(schedule, LAM), schedule.alpha_bar
    for t in (2, 3, 10, 30, 59, 60):
        x_0, noise = exact_moments(4, 1, 8, 8)
        found = reverse_term(denoiser, x_0, noise, torch.full((4,), t), kind).mean().item()
        beta = 1 - alpha_bar[t] / alpha_bar[t - 1]
        small = beta * (1 - alpha_bar[t - 1]) / (1 - alpha_bar[t])
        p = small if kind == "small" else beta
        weight = alpha_bar[t - 1].sqrt() * beta / (1 - alpha_bar[t])
        remaining = LAM * (1 - alpha_bar[t]) / (alpha_bar[t] * LAM + 1 - alpha_bar[t])
        expected = ((p / small).log() + (small + weight**2 * remaining) / p - 1) / 2 / math.log(2)
        assert found == pytest.approx(expected.item(), rel=1e-3, abs=1e-6), t


def test_with_more_steps_the_divergences_of_gaussian_data_become_what_x_1_tells_of_x_0():
    """I(x_0; x_1) = log(1 + lam snr) / 2, which the sum bounds; its excess falls with 1 / T for the large variance."""
    excess = []
    for T in (10, 100, 1000):
        schedule = LinearSchedule(T)
        denoiser, total = GaussianDenoiser(schedule, LAM), 0.0
        for t in range(2, T + 1):
            x_0, noise = exact_moments(4, 1, 4, 4)
            total += reverse_term(denoiser, x_0, noise, torch.full((4,), t), "large").mean().item()
        total += prior_term(schedule, x_0).mean().item()
        excess.append(total - torch.log2(1 + LAM * schedule.table.snr[1]).item() / 2)
    assert excess == pytest.approx([0.175647, 0.015810, 0.001576], abs=1e-4)  # by the closed form


@pytest.mark.parametrize("kind", ["small", "large"])
def test_the_bound_of_bytes_lies_above_their_entropy_and_near_it(bytes_and_bits, kind):
    p, x_0, bits = bytes_and_bits
    schedule = LinearSchedule(100)
    denoiser = BytesDenoiser(schedule, p)
    total = prior_term(schedule, x_0).mean().item()
    for t in range(1, 101):
        total += reverse_term(denoiser, x_0, torch.randn_like(x_0), torch.full((len(x_0),), t), kind).mean().item()
    assert bits < total < bits + {"small": 2.0, "large": 0.25}[kind]


def test_the_flows_bound_of_bytes_lies_above_their_entropy_and_nearer_than_the_other(bytes_and_bits):
    p, x_0, bits = bytes_and_bits
    schedule = LinearSchedule(100)
    denoiser = BytesDenoiser(schedule, p)
    found = flow_bound(denoiser, x_0, torch.randn_like(x_0), range(1, 101), "large", None, signs)
    assert bits < found.mean().item() < bits + 0.2
    # of a denoiser that sees grey everywhere it is another
    other = flow_bound(
        Clipped(GaussianDenoiser(schedule, 1e-6)), x_0, torch.randn_like(x_0), range(1, 101), "large", None, signs
    )
    assert other.mean() > 2 * bits


def test_the_flows_density_is_the_gaussians_to_second_order():
    """The flow of N(0, lam) data scales y = x / alpha by the ratio of the marginals' deviations."""
    schedule = LinearSchedule(1025)
    (alpha, sigma), x = schedule.table, 0.5 * torch.randn(3, 1, 4, 4, dtype=torch.float64)
    deviation = (alpha**2 * LAM + sigma**2).sqrt()
    stretch = deviation[-1] / deviation[1]  # of x itself
    exact = (Normal(0, 1).log_prob(stretch * x) + stretch.log()).sum((1, 2, 3))
    # N(0, I) in place of x_T's own density is all that keeps this from the data's
    torch.testing.assert_close(exact, Normal(0, deviation[1]).log_prob(x).sum((1, 2, 3)), rtol=0, atol=1e-3)
    errors = []
    for distance in (16, 8, 4, 2):
        found = flow_log_density(GaussianDenoiser(schedule, LAM), x, range(1, 1026, distance), None, signs)
        errors.append((found - exact).abs().max().item())
    assert errors[-1] < 0.004
    for coarse, fine in zip(errors, errors[1:], strict=False):
        assert coarse / fine == pytest.approx(4, rel=0.02)


@pytest.mark.parametrize("spacing", ["karras", "time", "log_snr"])
@pytest.mark.parametrize("schedule", [LinearSchedule(), CosineSchedule()])
def test_on_the_usual_schedules_the_flow_ends_where_nothing_is_left_to_integrate(schedule, spacing):
    """The cosine schedule's last move, to sigma / alpha = 20 291, would be off by 12 nats per dimension."""
    times = flow_times(schedule, 200, spacing)
    assert times[0] == 1
    assert 150 < len(times) <= 201
    assert 64 < schedule.table.snr[times[-1]].rsqrt() <= 160
    deviation = (schedule.table.alpha[1] ** 2 * LAM + schedule.table.sigma[1] ** 2).sqrt()
    x = deviation * torch.randn(3, 1, 4, 4, dtype=torch.float64)
    exact = Normal(0, deviation).log_prob(x).sum((1, 2, 3))
    found = flow_log_density(GaussianDenoiser(schedule, LAM), x, times, None, signs)
    torch.testing.assert_close(found, exact, rtol=0, atol={"karras": 0.1, "time": 1.5, "log_snr": 0.1}[spacing])


def test_hutchinsons_estimate_is_the_trace_of_the_jacobian():
    torch.manual_seed(3)
    net = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.Tanh(), nn.Conv2d(6, 1, 3, padding=1)).requires_grad_(False)
    schedule = LinearSchedule(100)

    class Net:
        def __init__(self):
            self.schedule = schedule

        def __call__(self, x_t, t, label=None):
            return net(x_t)

    y, t = torch.randn(2, 1, 4, 4), 30
    alpha, sigma = (float(scale) for scale in schedule(t))
    exact = []
    for image in y:
        jacobian = torch.func.jacrev(lambda v: (alpha * v - alpha * net(alpha * v)) / sigma)(image[None])
        exact.append(jacobian.reshape(16, 16).trace())
    noise, found = flow_slope(Net(), y, t, None, lambda x: [v for _ in range(4000) for v in signs(x)])
    torch.testing.assert_close(noise, (alpha * y - alpha * net(alpha * y)) / sigma)
    torch.testing.assert_close(found, torch.stack(exact), rtol=0.02, atol=0.02)
    # without chance, from the unit vectors
    units = 4 * torch.eye(16).view(16, 1, 1, 4, 4)
    _, found = flow_slope(Net(), y, t, None, lambda x: [unit.expand_as(x) for unit in units])
    torch.testing.assert_close(found, torch.stack(exact))


@pytest.mark.parametrize("T", [1, 7, 100])
def test_over_all_offsets_the_terms_tried_add_up_to_all_terms(T):
    """Whatever the terms, and however many are tried."""
    offset = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    terms = torch.rand(T + 1).double()
    for num_times in {1, 3, 7, 20, 99, 100, T} & set(range(1, T + 1)):
        chance, times = chance_of_times(num_times, T), spread_times(num_times, T, offset)
        assert times.shape == (num_times, 20_000)
        assert chance.sum().item() == pytest.approx(num_times)
        assert num_times == 1 or times.diff(dim=0).min() >= 1  # none twice
        tried = times.flatten().bincount(minlength=T + 1) / 20_000
        torch.testing.assert_close(tried.double(), chance, rtol=0, atol=1e-4)
        found = (terms[times] / chance[times]).sum(0).mean().item()
        assert found == pytest.approx(terms[1:].sum().item(), rel=0.01)
    assert torch.equal(spread_times(T, T, offset), torch.arange(1, T + 1).view(-1, 1).expand(-1, 20_000))


def test_terms_that_fall_as_one_over_t_are_estimated_without_chance():
    terms = 1 / torch.arange(101).double().clamp(min=1)
    chance, times = chance_of_times(20, 100), spread_times(20, 100, torch.rand(500, dtype=torch.float64))
    found = (terms[times] / chance[times]).sum(0)
    assert found.std() < 0.05 * found.mean()
    even = terms[torch.rand(500, 100).topk(20).indices + 1].sum(1) * 5
    assert found.std() < 0.1 * even.std()
