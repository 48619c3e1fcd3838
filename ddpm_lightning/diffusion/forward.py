"""The forward process q and its posterior, as functions of images and noise levels."""

from typing import NamedTuple

from torch import Tensor

from ddpm_lightning.diffusion.level import NoiseLevel, expand


class Gaussian(NamedTuple):
    """Mean (B, C, H, W) and variance, of a shape that multiplies the mean."""

    mean: Tensor
    variance: Tensor


def diffuse(x_0: Tensor, noise: Tensor, level: NoiseLevel) -> Tensor:
    """Sample q(x_t | x_0) with the given standard normal noise.  Ho et al. (2020), eq. 4."""
    alpha, sigma = level.like(x_0)
    return alpha * x_0 + sigma * noise


def noise_from_x0(x_t: Tensor, x_0: Tensor, level: NoiseLevel) -> Tensor:
    """The noise that leads from x_0 to x_t.  Needs sigma > 0."""
    alpha, sigma = level.like(x_t)
    return (x_t - alpha * x_0) / sigma


def x0_from_noise(x_t: Tensor, noise: Tensor, level: NoiseLevel) -> Tensor:
    """The clean image from which the noise leads to x_t.  Needs alpha > 0.  Ho et al. (2020), eq. 15."""
    alpha, sigma = level.like(x_t)
    return (x_t - sigma * noise) / alpha


def transition_variance(level_t: NoiseLevel, level_s: NoiseLevel) -> Tensor:
    """Variance beta_(t|s) of q(x_t | x_s), s < t: Ho's beta_t if s = t - 1.  Kingma et al. (2021), sec. 3.1.

    Give levels in float64: in float32 neighbouring steps of a cosine schedule are off by 1e-3.
    """
    return 1 - (level_t.alpha / level_s.alpha) ** 2


def learned_variance(fraction: Tensor, small: Tensor, large: Tensor) -> Tensor:
    """Between two variances by a fraction of their logarithms, 0 for the small.  Nichol & Dhariwal (2021), eq. 15."""
    return (fraction * large.log() + (1 - fraction) * small.log()).exp()


def posterior(
    x_t: Tensor, x_0: Tensor, level_t: NoiseLevel, level_s: NoiseLevel, beta: Tensor | None = None
) -> Gaussian:
    """q(x_s | x_t, x_0) for s < t.  Ho et al. (2020), eq. 6-7, for a step of any length.

    ``beta`` is the transition's variance, of the levels' shape, where it is known better than from float32 levels.
    """
    alpha_t, sigma_t = level_t.like(x_t)
    alpha_s, sigma_s = level_s.like(x_t)
    if beta is None:
        beta = transition_variance(level_t, level_s)
    beta = expand(beta, x_t)
    remains = (sigma_s / sigma_t) ** 2
    weight_x0 = alpha_s * beta / sigma_t**2
    weight_xt = alpha_t / alpha_s * remains
    return Gaussian(weight_x0 * x_0 + weight_xt * x_t, beta * remains)
