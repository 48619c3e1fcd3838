"""From an image back to the noise that DDIM makes it of."""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from ddpm_lightning.diffusion.forward import diffuse, noise_from_x0, x0_from_noise
from ddpm_lightning.diffusion.guidance import X0Estimator
from ddpm_lightning.diffusion.samplers.spacing import visited_times


@torch.no_grad()
def invert(
    denoiser: X0Estimator,
    x_0: Tensor,
    num_steps: int,
    spacing: str = "time",
    label: Tensor | None = None,
    refinements: int = 0,
    on_move: Callable[[int], None] = lambda images: None,
) -> Tensor:
    """Noise x_T (B, C, H, W) from which DDIM, eta = 0, without clipping, on the same times, makes images near x_0.

    Each move of the sampler undone with the noise estimate where it ends, for want of the one where it began,
    Song et al. (2021), sec. 4.3: a first-order error. Each of ``refinements`` estimates the noise again where the move
    is now thought to have begun, and so comes nearer to undoing it exactly, Pan et al. (2023), sec. 3.1.
    """
    times = visited_times(denoiser.schedule, num_steps, spacing)[::-1]
    x = x_0
    for s, t in pairwise(times):
        level_s, level_t = denoiser.schedule(s), denoiser.schedule(t)
        # the network knows no time 0, where there is no noise to estimate
        at = (x, s) if s > 0 else (x, t)
        noise = noise_from_x0(at[0], denoiser(*at, label), denoiser.schedule(at[1]))
        x_t = diffuse(x0_from_noise(x, noise, level_s), noise, level_t)
        for _ in range(refinements):
            noise = noise_from_x0(x_t, denoiser(x_t, t, label), level_t)
            x_t = diffuse(x0_from_noise(x, noise, level_s), noise, level_t)
        x = x_t
        on_move(len(x))
    return x
