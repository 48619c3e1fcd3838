import pytest
import torch

from ddpm_lightning.diffusion.forward import diffuse, noise_from_x0, posterior, transition_variance, x0_from_noise
from ddpm_lightning.diffusion.level import NoiseLevel
from ddpm_lightning.diffusion.schedules.cosine import CosineSchedule
from ddpm_lightning.diffusion.schedules.linear import LinearSchedule

SCHEDULES = [LinearSchedule(), CosineSchedule()]


def test_diffusing_and_back_are_inverse():
    x_0, noise = torch.randn(2, 5, 3, 4, 4, dtype=torch.float64)
    level = NoiseLevel(*LinearSchedule()(torch.tensor([1, 100, 500, 900, 1000])))
    level = NoiseLevel(level.alpha.double(), level.sigma.double())
    x_t = diffuse(x_0, noise, level)
    torch.testing.assert_close(noise_from_x0(x_t, x_0, level), noise)
    torch.testing.assert_close(x0_from_noise(x_t, noise, level), x_0)


def test_posterior_has_the_published_coefficients():
    """Linear schedule, k = 1: computed once from Ho et al., eq. 7, in float64."""
    schedule = LinearSchedule()
    one, zero = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    assert posterior(zero, one, schedule(2), schedule(1)).mean.item() == pytest.approx(0.545291499510138, rel=1e-9)
    assert posterior(one, zero, schedule(2), schedule(1)).mean.item() == pytest.approx(0.45470849899053, rel=1e-9)
    assert posterior(one, zero, schedule(2), schedule(1)).variance.item() == pytest.approx(
        5.45318766130067e-05, rel=1e-9
    )


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_posterior_averaged_over_x_t_is_the_marginal_at_s(schedule):
    """For any t and s: c0 + ct alpha_t = alpha_s, and ct^2 sigma_t^2 + variance = sigma_s^2."""
    one, zero = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    for t, s in [(1, 0), (2, 1), (500, 499), (1000, 999), (1000, 1), (700, 350), (1000, 0)]:
        level_t, level_s = schedule(t), schedule(s)
        weight_x0, weight_xt = (posterior(*pair, level_t, level_s).mean.item() for pair in ((zero, one), (one, zero)))
        variance = posterior(one, zero, level_t, level_s).variance.item()
        assert weight_x0 + weight_xt * level_t.alpha.item() == pytest.approx(level_s.alpha.item(), rel=1e-9)
        total = weight_xt**2 * level_t.sigma.item() ** 2 + variance
        assert total == pytest.approx(level_s.sigma.item() ** 2, rel=1e-8, abs=1e-15)


def test_transition_variances_are_exact_for_neighbouring_steps():
    """In float32 they are off by 1e-3 for neighbouring steps of the cosine schedule."""
    schedule = CosineSchedule()
    f = torch.cos((torch.tensor([1.0, 2.0], dtype=torch.float64) / 1000 + 0.008) / 1.008 * torch.pi / 2) ** 2
    assert transition_variance(schedule(2), schedule(1)).item() == pytest.approx((1 - f[1] / f[0]).item(), rel=1e-9)


def test_a_level_multiplies_image_by_image_even_if_the_batch_is_as_wide_as_the_images():
    alpha = torch.tensor([0.1, 0.2, 0.3, 0.4])
    x = diffuse(torch.ones(4, 1, 4, 4), torch.zeros(4, 1, 4, 4), NoiseLevel(alpha, alpha))
    torch.testing.assert_close(x[:, 0, 0, 0], alpha)
    assert (x == x[:, :, :1, :1]).all()


@pytest.mark.parametrize("shape", [(3,), (4, 1), (1,)])
def test_levels_of_another_batch_are_refused(shape):
    level = NoiseLevel(torch.ones(shape), torch.ones(shape))
    with pytest.raises(ValueError, match="must have shape"):
        level.like(torch.zeros(4, 1, 2, 2))


def test_snr_and_its_logarithm():
    level = LinearSchedule()(torch.tensor([0, 1, 500, 1000]))
    torch.testing.assert_close(level.snr.log(), level.log_snr)
    assert level.snr[0] == float("inf")
    assert level.snr[2].item() == pytest.approx(0.0786 / (1 - 0.0786), rel=1e-2)
