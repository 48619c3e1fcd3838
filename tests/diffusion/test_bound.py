"""The variational bound against closed forms, and against a second implementation by scipy."""

import math

import pytest
import torch
from conftest import GaussianDenoiser
from scipy import stats
from torch import nn

from ddpm_lightning.diffusion.bound import bound_term, decoder_log_likelihood, normal_kl, reverse_variance
from ddpm_lightning.diffusion.denoiser import Denoiser
from ddpm_lightning.diffusion.forward import diffuse, posterior, transition_variance
from ddpm_lightning.diffusion.loss import VariationalBound, attempt
from ddpm_lightning.diffusion.parameterization import CleanImage
from ddpm_lightning.diffusion.schedules.cosine import CosineSchedule
from ddpm_lightning.diffusion.schedules.linear import LinearSchedule

GREYS = torch.arange(256, dtype=torch.float64) / 127.5 - 1


@pytest.mark.parametrize("mean", [-1.5, -1.0, -0.3, 0.0, 0.9, 1.0, 3.0])
@pytest.mark.parametrize("std", [0.002, 0.01, 0.2, 5.0])
def test_the_decoders_256_probabilities_add_up_to_one(mean, std):
    log_p = decoder_log_likelihood(GREYS, torch.tensor(mean).double(), torch.tensor(std).double())
    assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-9)


def test_the_decoder_has_the_known_value_and_scipys():
    grey = torch.tensor([128 / 127.5 - 1])
    assert decoder_log_likelihood(grey, grey, torch.tensor(0.01)).item() == pytest.approx(-1.187254389235, rel=1e-5)
    normal = stats.norm(0.1, 0.05)
    for k in (0, 3, 100, 141, 200, 255):
        x = k / 127.5 - 1
        # from the nearer tail, where the logarithms are exact
        near, far, outward = (
            (normal.logsf(x - 1 / 255), normal.logsf(x + 1 / 255), k < 255)
            if x > 0.1
            else (normal.logcdf(x + 1 / 255), normal.logcdf(x - 1 / 255), k > 0)
        )
        expected = near + math.log(-math.expm1(far - near)) if outward else near
        found = decoder_log_likelihood(torch.tensor(x), torch.tensor(0.1), torch.tensor(0.05)).item()
        assert found == pytest.approx(expected, rel=1e-4), k


def test_the_decoder_has_a_gradient_wherever_the_mean_is():
    for mean in (-30.0, -1.0, 0.0, 1.0, 30.0):
        for grey in (-1.0, 1.0, 0.0039):
            at = torch.tensor(mean, requires_grad=True)
            log_p = decoder_log_likelihood(torch.tensor(grey), at, torch.tensor(0.007))
            log_p.backward()
            assert log_p.isfinite()
            assert at.grad.isfinite()
            assert mean == grey or abs(mean - grey) < 0.01 or at.grad * (grey - mean) >= 0


def test_the_divergence_of_normal_distributions():
    zero, one = torch.tensor(0.0), torch.tensor(1.0)
    assert normal_kl(zero, one, zero, one) == 0
    # torch's own
    p, q = torch.distributions.Normal(1.0, 2.0), torch.distributions.Normal(-0.5, 0.7)
    kl = torch.distributions.kl_divergence(q, p)
    torch.testing.assert_close(normal_kl(q.loc, q.scale**2, p.loc, p.scale**2), kl)


@pytest.mark.parametrize("schedule", [LinearSchedule(), CosineSchedule()])
def test_the_schedules_variances_are_exact(schedule):
    """In float64 from the levels themselves; in float32 the same formula would be off by 1e-3."""
    x = torch.zeros(1, 1, 1, 1)
    for t in (2, 3, 500, 999, 1000):
        level_t, level_s = schedule(t), schedule(t - 1)
        assert schedule.beta[t].item() == pytest.approx(transition_variance(level_t, level_s).item(), rel=1e-6)
        exact = posterior(x, x, level_t, level_s).variance.item()
        assert schedule.beta_small[t].item() == pytest.approx(exact, rel=1e-6)
    assert schedule.beta_small[1] == schedule.beta_small[2]
    if isinstance(schedule, LinearSchedule):
        assert schedule.beta_small[2].item() == pytest.approx(5.45318766130067e-05, rel=1e-6)


def test_a_learned_variance_lies_between_the_two_by_its_logarithm():
    schedule, t, x = LinearSchedule(), torch.tensor([1, 2, 500]), torch.zeros(3, 1, 1, 1)
    small = reverse_variance(schedule, "small", t, x, None)
    large = schedule.beta[t].view(3, 1, 1, 1)
    for fraction, expected in ((0.0, small), (1.0, large), (0.5, (small * large).sqrt())):
        found = reverse_variance(schedule, "learned", t, x, torch.full_like(x, fraction))
        torch.testing.assert_close(found, expected)
    with pytest.raises(ValueError, match="learns none"):
        reverse_variance(schedule, "learned", t, x, None)


class Oracle(nn.Module):
    """The best estimate of x_0 for N(0, variance) data, and any fraction of the variance."""

    def __init__(self, schedule, variance, fraction=None):
        super().__init__()
        self.oracle = GaussianDenoiser(schedule, variance)
        self.scale = nn.Parameter(torch.ones(()))
        self.fraction = None if fraction is None else nn.Parameter(torch.tensor(fraction))

    def forward(self, x_t, times, label):
        x_0 = self.scale * self.oracle(x_t, times + 1)
        if self.fraction is None:
            return x_0
        return torch.cat([x_0, (2 * self.fraction - 1).expand_as(x_0)], dim=1)


@pytest.mark.parametrize("kind", ["small", "large", "learned"])
@pytest.mark.parametrize("schedule", [LinearSchedule(100), CosineSchedule(100)])
def test_the_bound_of_gaussian_data_is_the_closed_form(schedule, kind):
    """The mean errs by w (x_0 - E[x_0 | x_t]), whose variance is known: so is the divergence's mean at every time."""
    lam = 0.25
    t = torch.arange(2, 101).repeat(400)
    x_0, noise = lam**0.5 * torch.randn(len(t), 1, 4, 4), torch.randn(len(t), 1, 4, 4)
    denoiser = Denoiser(Oracle(schedule, lam, 0.3), schedule, CleanImage(), (1, 4, 4))
    with torch.no_grad():
        losses = VariationalBound(1.0, kind)(denoiser, attempt(denoiser, x_0, t, noise)) / schedule.num_steps
    found = losses.view(400, 99).mean(0)

    alpha_bar = schedule.alpha_bar
    t = torch.arange(2, 101)
    beta = 1 - alpha_bar[t] / alpha_bar[t - 1]
    small = beta * (1 - alpha_bar[t - 1]) / (1 - alpha_bar[t])
    p = {"small": small, "large": beta, "learned": small**0.7 * beta**0.3}[kind]
    weight = alpha_bar[t - 1].sqrt() * beta / (1 - alpha_bar[t])
    remaining = lam * (1 - alpha_bar[t]) / (alpha_bar[t] * lam + 1 - alpha_bar[t])
    nats = ((p / small).log() + (small + weight**2 * remaining) / p - 1) / 2
    torch.testing.assert_close(found.double(), nats / math.log(2), rtol=0.06, atol=2e-5)
    assert found.mean().item() == pytest.approx((nats / math.log(2)).mean().item(), rel=0.01)


def test_at_the_first_time_even_the_large_variance_is_the_small_one_of_the_second():
    """As in the code of Ho et al., from which published figures are."""
    schedule, t, x = LinearSchedule(), torch.tensor([1, 2]), torch.zeros(2, 1, 1, 1)
    small, large = (reverse_variance(schedule, kind, t, x, None).flatten() for kind in ("small", "large"))
    assert small[0] == large[0] == small[1]
    assert large[1].item() == pytest.approx(1 - 0.9997800920720721 / 0.9999, rel=1e-4)


def test_at_the_first_time_the_bound_is_the_decoders():
    schedule = LinearSchedule()
    x_0 = GREYS.float()[torch.randint(0, 256, (50, 1, 4, 4))]
    t = torch.ones(50, dtype=torch.int64)
    x_1 = diffuse(x_0, torch.randn_like(x_0), schedule(t))
    variance = reverse_variance(schedule, "large", t, x_0, None)
    found = bound_term(schedule, x_0, x_1, t, x_0, variance)
    expected = -decoder_log_likelihood(x_0, x_0, schedule.beta_small[1].sqrt()).flatten(1).mean(1) / math.log(2)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_the_hybrid_term_trains_the_variance_alone_and_the_full_bound_both():
    schedule = LinearSchedule(100)
    x_0, noise = torch.randn(2, 60, 1, 4, 4).clamp(-1, 1)
    for only_variance in (True, False):
        net = Oracle(schedule, 0.5, 0.9)
        denoiser = Denoiser(net, schedule, CleanImage(), (1, 4, 4))
        trial = attempt(denoiser, x_0, torch.arange(1, 61), noise)
        VariationalBound(0.001, "learned", only_variance)(denoiser, trial).sum().backward()
        assert net.fraction.grad.abs() > 1e-6
        assert (net.scale.grad is None or net.scale.grad == 0) == only_variance


def test_the_best_variance_of_gaussian_data_has_no_gradient():
    """log p is best where the variance is the posterior's plus the mean's own error: there the bound is flat."""
    schedule, lam, t = LinearSchedule(100), 0.25, 40
    alpha_bar = schedule.alpha_bar
    beta = 1 - alpha_bar[t] / alpha_bar[t - 1]
    small = beta * (1 - alpha_bar[t - 1]) / (1 - alpha_bar[t])
    weight = alpha_bar[t - 1].sqrt() * beta / (1 - alpha_bar[t])
    remaining = lam * (1 - alpha_bar[t]) / (alpha_bar[t] * lam + 1 - alpha_bar[t])
    best = ((small + weight**2 * remaining) / small).log() / (beta / small).log()
    slopes = []
    for fraction in (best.item() - 0.3, best.item(), best.item() + 0.3):
        net = Oracle(schedule, lam, fraction)
        denoiser = Denoiser(net, schedule, CleanImage(), (1, 4, 4))
        torch.manual_seed(0)
        x_0, noise = lam**0.5 * torch.randn(20_000, 1, 4, 4), torch.randn(20_000, 1, 4, 4)
        trial = attempt(denoiser, x_0, torch.full((20_000,), t), noise)
        VariationalBound(1.0, "learned")(denoiser, trial).mean().backward()
        slopes.append(net.fraction.grad.item())
    assert slopes[0] < -20 * abs(slopes[1])
    assert slopes[2] > 20 * abs(slopes[1])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VariationalBound(0.0), "weight must be above 0, got 0.0"),
        (lambda: VariationalBound(1.0, "medium"), "variance must be one of small, large, learned, got medium"),
        (lambda: VariationalBound(1.0, "small", True), "only_variance must be false for variance=small, got true"),
    ],
)
def test_impossible_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
