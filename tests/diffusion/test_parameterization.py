import pytest
import torch
from conftest import group_options
from hydra.utils import instantiate
from omegaconf import OmegaConf

from ddpm_lightning.diffusion.forward import diffuse, noise_from_x0
from ddpm_lightning.diffusion.level import NoiseLevel
from ddpm_lightning.diffusion.parameterization import Velocity
from ddpm_lightning.diffusion.schedules.cosine import CosineSchedule
from ddpm_lightning.runs.refusal import CONF


def load(name):
    return instantiate(OmegaConf.load(CONF / "parameterization" / f"{name}.yaml"))


@pytest.fixture
def level():
    level = CosineSchedule()(torch.tensor([1, 250, 500, 900]))
    return NoiseLevel(level.alpha.double(), (1 - level.alpha.double() ** 2).sqrt())


@pytest.mark.parametrize("name", group_options("parameterization"))
def test_the_target_stands_for_the_true_image(name, level):
    parameterization = load(name)
    x_0, noise = torch.randn(2, 4, 3, 2, 2, dtype=torch.float64)
    output = parameterization.target(x_0, noise, level)
    torch.testing.assert_close(parameterization.x0(output, diffuse(x_0, noise, level), level), x_0)


@pytest.mark.parametrize("name", group_options("parameterization"))
def test_gain_turns_output_errors_into_noise_errors(name, level):
    """By finite difference: move the output by d, and see how far the noise estimate moves."""
    parameterization = load(name)
    x_0, noise, d = torch.randn(3, 4, 3, 2, 2, dtype=torch.float64)
    x_t = diffuse(x_0, noise, level)
    output = parameterization.target(x_0, noise, level)

    def noise_estimate(out):
        return noise_from_x0(x_t, parameterization.x0(out, x_t, level), level)

    moved = (noise_estimate(output + d) - noise_estimate(output)).abs()
    torch.testing.assert_close(moved, parameterization.noise_gain(level).view(-1, 1, 1, 1) * d.abs())


def test_velocity_is_the_derivative_along_the_circle():
    """With alpha = cos(phi), sigma = sin(phi): v = d x / d phi, Salimans & Ho (2022), app. D."""
    phi = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    x_0, noise = 0.3, -1.1
    (phi.cos() * x_0 + phi.sin() * noise).backward()
    level = NoiseLevel(phi.detach().cos(), phi.detach().sin())
    v = Velocity().target(torch.full((1, 1), x_0), torch.full((1, 1), noise), level)
    assert v.item() == pytest.approx(phi.grad.item())
