import pytest
import torch
from conftest import GaussianDenoiser

from ddpm_lightning.diffusion.samplers.ddim import DDIMSampler
from ddpm_lightning.diffusion.samplers.inversion import invert
from ddpm_lightning.diffusion.schedules.linear import LinearSchedule


def there_and_back(denoiser, x_0, num_steps, refinements=0, spacing="time"):
    x_T = invert(denoiser, x_0, num_steps, spacing, refinements=refinements)
    return x_T, DDIMSampler(num_steps, spacing, clip_x0=False)(denoiser, x_T)


def test_gaussian_data_become_the_noise_that_the_flow_makes_of_them():
    """The flow of N(0, lam) data is linear: it takes standard deviation sqrt(lam) to that of x_T."""
    schedule, lam = LinearSchedule(), 0.25
    x_0 = lam**0.5 * torch.randn(4, 1, 4, 4)
    x_T, _ = there_and_back(GaussianDenoiser(schedule, lam), x_0, 1000)
    level = schedule(1000)
    scale = ((level.alpha**2 * lam + level.sigma**2) / lam).sqrt()
    torch.testing.assert_close(x_T, (scale * x_0).float(), rtol=0.02, atol=1e-3)


def test_the_error_of_a_round_trip_falls_in_proportion_to_the_steps():
    denoiser, x_0 = GaussianDenoiser(LinearSchedule(), 0.25), 0.5 * torch.randn(4, 1, 4, 4)
    errors = [(there_and_back(denoiser, x_0, n)[1] - x_0).abs().max().item() for n in (20, 50, 200, 1000)]
    assert errors == sorted(errors, reverse=True)
    assert errors[3] < 0.03 * errors[0]


@pytest.mark.parametrize("spacing", ["time", "log_snr", "karras"])
def test_refinements_undo_each_move_exactly(spacing):
    denoiser, x_0 = GaussianDenoiser(LinearSchedule(), 0.25), 0.5 * torch.randn(4, 1, 4, 4)
    _, plain = there_and_back(denoiser, x_0, 20, 0, spacing)
    _, once = there_and_back(denoiser, x_0, 20, 1, spacing)
    _, often = there_and_back(denoiser, x_0, 20, 30, spacing)
    assert (once - x_0).abs().max() < 0.7 * (plain - x_0).abs().max()
    torch.testing.assert_close(often, x_0, rtol=1e-3, atol=1e-3)


def test_the_network_is_asked_at_times_it_knows():
    asked = []

    class Spy(GaussianDenoiser):
        def __call__(self, x_t, t, label=None):
            asked.append((t, label))
            return super().__call__(x_t, t)

    label = torch.tensor([3])
    invert(Spy(LinearSchedule(50), 1.0), torch.randn(1, 1, 2, 2), 5, label=label)
    assert [t for t, _ in asked] == [1, 1, 13, 26, 38]
    assert all(given is label for _, given in asked)
