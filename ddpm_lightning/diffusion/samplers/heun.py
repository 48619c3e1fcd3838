"""Heun's method, the sampler of EDM."""

from typing import Any

from torch import Tensor

from ddpm_lightning.diffusion.forward import diffuse
from ddpm_lightning.diffusion.guidance import X0Estimator
from ddpm_lightning.diffusion.samplers.base import RandnLike, Sampler


class HeunSampler(Sampler):
    """The probability flow by Heun's method: second order, two calls a move.  Karras et al. (2022), algorithm 1.

    In x / alpha as a function of sigma / alpha the slope of the flow is the noise estimate (eq. 4), so a
    move is DDIM's with the mean of the noise at both ends; the last is DDIM's own. Steps must not be long in
    sigma / alpha: use "karras" or "log_snr" spacing.
    """

    calls_per_step = 2

    def __init__(self, num_steps: int, spacing: str = "karras", clip_x0: bool = True) -> None:
        super().__init__(num_steps, spacing, clip_x0)

    def step(
        self,
        denoiser: X0Estimator,
        x_t: Tensor,
        t: int,
        s: int,
        label: Tensor | None,
        memory: Any,
        randn_like: RandnLike,
    ) -> tuple[Tensor, None]:
        level_t, level_s = denoiser.schedule(t), denoiser.schedule(s)
        x_0, noise = self.predict(denoiser, x_t, t, label)
        if s == 0 or level_t.alpha == 0:  # where nothing of x_0 is left, sigma / alpha has no end to step from
            return diffuse(x_0, noise, level_s), None
        move = level_s.sigma / level_s.alpha - level_t.sigma / level_t.alpha
        euler = level_s.alpha * (x_t / level_t.alpha + move * noise)
        noise_s = self.predict(denoiser, euler, s, label).noise
        return level_s.alpha * (x_t / level_t.alpha + move * (noise + noise_s) / 2), None
