import math

import pytest
import torch
from conftest import GaussianDenoiser, group_options
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn

from ddpm_lightning.diffusion.denoiser import Denoiser
from ddpm_lightning.diffusion.distance import L1, MSE, Huber, Mixture
from ddpm_lightning.diffusion.loss import Denoising, VariationalBound, attempt, denoising_loss
from ddpm_lightning.diffusion.parameterization import CleanImage, Epsilon, Velocity
from ddpm_lightning.diffusion.schedules.cosine import CosineSchedule
from ddpm_lightning.diffusion.schedules.linear import LinearSchedule
from ddpm_lightning.diffusion.weighting import LinearTime, MinSNR, Uniform
from ddpm_lightning.runs.refusal import CONF

SHAPE = (1, 4, 4)


class OptimalNet(nn.Module):
    """The best output for N(0, variance) data, found from the conditional mean. Notes the times it is given."""

    def __init__(self, schedule, parameterization, variance=1.0):
        super().__init__()
        self.oracle = GaussianDenoiser(schedule, variance)
        self.parameterization = parameterization
        self.times = None

    def forward(self, x_t, times, label):
        self.times = times
        t = times + 1
        level = self.oracle.schedule(t)
        x_0 = self.oracle(x_t, t)
        alpha, sigma = level.like(x_t)
        return self.parameterization.target(x_0, (x_t - alpha * x_0) / sigma, level)


def mean_loss(schedule, parameterization, weighting=None, per_time=100, distance=None):
    denoiser = Denoiser(OptimalNet(schedule, parameterization), schedule, parameterization, SHAPE)
    t = torch.arange(1, schedule.num_steps + 1).repeat(per_time)
    x_0, noise = torch.randn(2, len(t), *SHAPE)
    return denoising_loss(denoiser, weighting or Uniform(), distance or MSE(), x_0, t, noise)


@pytest.mark.parametrize(
    ("schedule", "known"), [(LinearSchedule(), 0.275513233397), (CosineSchedule(), 0.495577512582)]
)
def test_the_best_possible_loss_on_gaussian_data(schedule, known):
    """E |noise - E[noise | x_t]|^2 is the mean of alpha_bar for N(0, 1): no prediction can be better."""
    assert schedule.alpha_bar[1:].mean().item() == pytest.approx(known, rel=1e-9)
    assert mean_loss(schedule, Epsilon()).mean().item() == pytest.approx(known, rel=0.01)


@pytest.mark.parametrize("parameterization", [CleanImage(), Velocity()])
def test_uniform_weighting_means_the_same_loss_for_every_parameterization(parameterization):
    schedule = CosineSchedule(50)
    torch.manual_seed(1)
    loss = mean_loss(schedule, parameterization)
    torch.manual_seed(1)
    torch.testing.assert_close(loss, mean_loss(schedule, Epsilon()), rtol=2e-3, atol=1e-4)


def test_the_best_velocity_on_gaussian_data_errs_by_one():
    """v and x_t are independent for N(0, 1) data, so the best estimate is 0, and its squared error 1."""
    schedule = LinearSchedule()
    net = OptimalNet(schedule, Velocity())
    x_t = torch.randn(5, *SHAPE)
    assert net(x_t, torch.tensor([0, 10, 100, 500, 999]), None).abs().max() < 1e-3


def test_the_network_is_given_times_from_zero():
    schedule = LinearSchedule(10)
    net = OptimalNet(schedule, Epsilon())
    denoiser = Denoiser(net, schedule, Epsilon(), SHAPE)
    x = torch.randn(2, *SHAPE)
    denoising_loss(denoiser, Uniform(), MSE(), x, torch.tensor([1, 10]), x)
    assert net.times.tolist() == [0, 9]
    denoiser(x, 10)
    assert net.times.tolist() == [9, 9]


@pytest.mark.parametrize("distance", group_options("distance"))
@pytest.mark.parametrize("weighting", group_options("weighting"))
@pytest.mark.parametrize("parameterization", group_options("parameterization"))
def test_a_perfect_prediction_has_no_loss_and_any_other_a_gradient(parameterization, weighting, distance):
    parameterization, weighting, distance = (
        instantiate(OmegaConf.load(CONF / group / f"{name}.yaml"))
        for group, name in (("parameterization", parameterization), ("weighting", weighting), ("distance", distance))
    )
    schedule = LinearSchedule(100)
    x_0, noise = torch.randn(2, 6, *SHAPE)
    t = torch.tensor([1, 20, 40, 60, 80, 100])
    error = nn.Parameter(torch.zeros(1))

    class Cheat(nn.Module):
        def forward(self, x_t, times, label):
            return parameterization.target(x_0, noise, schedule(times + 1)) + error

    def loss():
        return denoising_loss(Denoiser(Cheat(), schedule, parameterization, SHAPE), weighting, distance, x_0, t, noise)

    assert loss().abs().max() == 0
    error.data.fill_(0.1)
    assert (loss() > 0).all()
    loss().sum().backward()
    assert error.grad.abs() > 0


def test_the_output_is_taken_to_float32():
    schedule = LinearSchedule(10)

    class HalfNet(nn.Module):
        def forward(self, x_t, times, label):
            return x_t.bfloat16()

    denoiser = Denoiser(HalfNet(), schedule, Epsilon(), SHAPE)
    assert denoiser(torch.randn(2, *SHAPE), 5).dtype == torch.float32


def test_min_snr_is_the_published_weight_on_noise_errors():
    """min(snr, gamma) on x_0 errors (Hang et al., eq. 7) is min(gamma / snr, 1) on noise errors."""
    level = LinearSchedule()(torch.tensor([101, 1, 1000]))
    weight = MinSNR(5.0)(level, level.alpha)
    assert weight[0].item() == pytest.approx(0.5857085078, rel=1e-5)
    assert weight[1].item() == pytest.approx(5 / 9999, rel=1e-3)
    assert weight[2] == 1


def test_the_loss_is_weighted_image_by_image_and_the_configured_gamma_is_five():
    schedule, weighting = LinearSchedule(50), instantiate(OmegaConf.load(CONF / "weighting" / "min_snr.yaml"))
    assert weighting.gamma == 5
    torch.manual_seed(1)
    weighted = mean_loss(schedule, Epsilon(), weighting, per_time=2)
    torch.manual_seed(1)
    plain = mean_loss(schedule, Epsilon(), per_time=2)
    t = torch.arange(1, 51).repeat(2)
    torch.testing.assert_close(weighted, weighting(schedule(t), t / 50) * plain)
    assert (weighted < 0.9 * plain).any()


def test_distances_in_numbers():
    a, b = torch.zeros(2, 1, 2, 2), torch.tensor([[0.5, -0.5, 0.5, -0.5], [3.0, 3.0, 3.0, -3.0]]).view(2, 1, 2, 2)
    assert MSE()(a, b).tolist() == [0.25, 9.0]
    assert L1()(a, b).tolist() == [0.5, 3.0]
    assert Huber(1.0)(a, b).tolist() == [0.125, 2.5]
    assert Huber(2.0)(a, b).tolist() == [0.125, 4.0]


@pytest.mark.parametrize("make", [lambda: Huber(0.0), lambda: MinSNR(-1.0)])
def test_impossible_settings_are_refused(make):
    with pytest.raises(ValueError, match="must be above 0"):
        make()


def test_a_mixture_is_the_weighted_sum_of_its_parts():
    a, b = torch.randn(2, 5, 1, 4, 4)
    expected = 0.2 * MSE()(a, b) + 0.5 * L1()(a, b) + 3.0 * Huber(0.4)(a, b)
    torch.testing.assert_close(Mixture(0.2, 0.5, 3.0, 0.4)(a, b), expected)
    assert torch.equal(Mixture(1.0, 0.0, 0.0)(a, b), MSE()(a, b))
    for weights in ((0.0, 0.0, 0.0), (-1.0, 2.0, 0.0)):
        with pytest.raises(ValueError, match="mse, l1, huber must be at least 0, and one of them above"):
            Mixture(*weights)


@pytest.mark.parametrize("parameterization", [CleanImage(), Velocity()])
def test_in_output_space_the_loss_is_the_plain_error_even_where_there_is_no_signal(parameterization):
    schedule = LinearSchedule(20, zero_terminal_snr=True)
    bias = nn.Parameter(torch.tensor(0.3))
    x_0, noise = torch.randn(2, 20, *SHAPE)
    t = torch.arange(1, 21)

    class Off(nn.Module):
        def forward(self, x_t, times, label):
            return parameterization.target(x_0, noise, schedule(times + 1)) + bias

    denoiser = Denoiser(Off(), schedule, parameterization, SHAPE)
    trial = attempt(denoiser, x_0, t, noise)
    torch.testing.assert_close(Denoising(Uniform(), MSE(), "output")(denoiser, trial), torch.full((20,), 0.09))
    in_noise = Denoising(Uniform(), MSE())(denoiser, trial)
    gain = parameterization.noise_gain(schedule(t))
    torch.testing.assert_close(in_noise, 0.09 * gain**2, rtol=1e-4, atol=1e-6)
    assert in_noise[-1] == 0  # the reason for the other space
    weighted = Denoising(LinearTime(), MSE(), "output")(denoiser, trial)
    torch.testing.assert_close(weighted, 0.09 * t / 20)
    with pytest.raises(ValueError, match="space must be noise for weights by SNR"):
        Denoising(MinSNR(), MSE(), "output")
    Denoising(Uniform(), MSE(), "output")(denoiser, trial)[-1].backward()
    assert bias.grad > 0
    with pytest.raises(ValueError, match="space must be one of noise, output, got v"):
        Denoising(Uniform(), MSE(), "v")


def test_a_perturbation_is_seen_but_not_to_be_predicted():
    schedule, seen = LinearSchedule(10), []

    class Spy(nn.Module):
        def forward(self, x_t, times, label):
            seen.append(x_t)
            return torch.zeros_like(x_t)

    denoiser = Denoiser(Spy(), schedule, Epsilon(), SHAPE)
    x_0, noise, extra = torch.randn(3, 4, *SHAPE)
    t = torch.tensor([1, 4, 7, 10])
    trial = attempt(denoiser, x_0, t, noise, perturbation=0.1 * extra)
    alpha, sigma = schedule(t).like(x_0)
    torch.testing.assert_close(seen[0], alpha * x_0 + sigma * (noise + 0.1 * extra))
    torch.testing.assert_close(Denoising(Uniform(), MSE())(denoiser, trial), noise.pow(2).flatten(1).mean(1))


def test_a_perfect_network_has_no_hybrid_loss_but_that_of_its_variance():
    """KL between normals of one mean whose variances are beta_small and beta_large: known."""
    schedule = LinearSchedule(50)
    x_0, noise = torch.randn(2, 4, *SHAPE)
    t = torch.tensor([2, 10, 30, 50])

    class Cheat(nn.Module):
        def forward(self, x_t, times, label):
            return torch.cat([noise, torch.ones_like(noise)], dim=1)  # v = 1: the large variance

    denoiser = Denoiser(Cheat(), schedule, Epsilon(), SHAPE)
    trial = attempt(denoiser, x_0, t, noise)
    assert Denoising(Uniform(), MSE())(denoiser, trial).abs().max() == 0
    ratio = schedule.beta_small[t] / schedule.beta[t]
    expected = 0.001 * 50 * (ratio - 1 - ratio.log()) / 2 / math.log(2)
    found = VariationalBound(0.001, "learned", only_variance=True)(denoiser, trial)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)
