"""The training loss: one formula for every parameterization, weighting and distance."""

from torch import Tensor

from ddpm_lightning.diffusion.denoiser import Denoiser
from ddpm_lightning.diffusion.distance import Distance
from ddpm_lightning.diffusion.forward import diffuse
from ddpm_lightning.diffusion.weighting import Weighting


def denoising_loss(
    denoiser: Denoiser,
    weighting: Weighting,
    distance: Distance,
    x_0: Tensor,
    t: Tensor,
    noise: Tensor,
    label: Tensor | None = None,
) -> Tensor:
    """``weight * distance(gain * output, gain * target)`` for each image, (B,).  Ho et al. (2020), eq. 14.

    The gain turns errors of the output into errors of the noise estimate. So uniform weighting is
    L_simple whatever is predicted, and each distance acts in noise space. In particular, uniformly
    weighted v-prediction is *not* the plain mean squared error on v.

    Images x_0 (B, C, H, W) in [-1, 1], times t (B,) in [1, T], noise like x_0, labels (B,) or None.
    """
    level = denoiser.schedule(t)
    output = denoiser.output(diffuse(x_0, noise, level), t, label)
    target = denoiser.parameterization.target(x_0, noise, level)
    gain = denoiser.parameterization.noise_gain(level).view((-1,) + (1,) * (x_0.ndim - 1))
    weight = weighting(level, t / denoiser.schedule.num_steps)
    return weight * distance(gain * output, gain * target)
