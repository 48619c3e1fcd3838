"""Denoising diffusion implicit models."""

from typing import Any

from torch import Tensor

from ddpm_lightning.diffusion.forward import diffuse, transition_variance
from ddpm_lightning.diffusion.guidance import X0Estimator
from ddpm_lightning.diffusion.level import NoiseLevel
from ddpm_lightning.diffusion.samplers.base import RandnLike, Sampler


class DDIMSampler(Sampler):
    """x_s from the estimates of x_0 and noise, with fresh noise in the proportion ``eta``.  Song et al. (2021), eq. 12.

    eta = 0 is deterministic, the Euler method of the probability flow; eta = 1 is the ancestral sampler
    with small variance (eq. 16).
    """

    def __init__(self, num_steps: int, spacing: str = "time", clip_x0: bool = True, eta: float = 0.0) -> None:
        super().__init__(num_steps, spacing, clip_x0)
        if not 0 <= eta <= 1:
            raise ValueError(f"eta must lie in [0, 1], got {eta}")
        self.eta = eta

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
        if self.eta == 0 or s == 0:
            return diffuse(x_0, noise, level_s), None
        variance = self.eta**2 * level_s.sigma**2 / level_t.sigma**2 * transition_variance(level_t, level_s)
        kept = NoiseLevel(level_s.alpha, (level_s.sigma**2 - variance).sqrt())
        return diffuse(x_0, noise, kept) + variance.sqrt() * randn_like(x_t), None
