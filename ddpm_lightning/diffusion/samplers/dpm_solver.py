"""DPM-Solver++(2M)."""

from typing import NamedTuple

import torch
from torch import Tensor

from ddpm_lightning.diffusion.guidance import X0Estimator
from ddpm_lightning.diffusion.level import NoiseLevel
from ddpm_lightning.diffusion.samplers.base import RandnLike, Sampler


class Last(NamedTuple):
    """The step before: its estimate of x_0, and its length in lambda = log(alpha / sigma)."""

    x_0: Tensor
    h: Tensor


def exponential_step(x_t: Tensor, x_0: Tensor, level_t: NoiseLevel, level_s: NoiseLevel) -> Tensor:
    """The flow from t to s if the estimate of x_0 stayed the same.  Lu et al. (2022b), eq. 8; exact at sigma_s = 0."""
    ratio = level_s.sigma / level_t.sigma
    return ratio * x_t + (level_s.alpha - ratio * level_t.alpha) * x_0


class DPMSolverSampler(Sampler):
    """Second-order multistep solver of the probability flow, in the estimate of x_0.  Lu et al. (2022b), algorithm 2.

    One network call a move, no noise. The first and the last move are first order.
    """

    def __init__(self, num_steps: int, spacing: str = "log_snr", clip_x0: bool = True) -> None:
        super().__init__(num_steps, spacing, clip_x0)

    def step(
        self,
        denoiser: X0Estimator,
        x_t: Tensor,
        t: int,
        s: int,
        label: Tensor | None,
        memory: Last | None,
        randn_like: RandnLike,
    ) -> tuple[Tensor, Last]:
        level_t, level_s = denoiser.schedule(t), denoiser.schedule(s)
        h = (level_s.log_snr - level_t.log_snr) / 2
        x_0 = self.estimate(denoiser, x_t, t, label).x_0
        # lambda is infinite at s = 0, so the last step is first order
        extrapolated = x_0 if memory is None or s == 0 else torch.lerp(memory.x_0, x_0, 1 + float(h / memory.h) / 2)
        return exponential_step(x_t, extrapolated, level_t, level_s), Last(x_0, h)
