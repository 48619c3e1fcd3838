"""The sampler of DDPM."""

from typing import Any

from torch import Tensor

from ddpm_lightning.diffusion.bound import VARIANCES
from ddpm_lightning.diffusion.forward import learned_variance, posterior, transition_variance
from ddpm_lightning.diffusion.guidance import X0Estimator
from ddpm_lightning.diffusion.samplers.base import RandnLike, Sampler


class AncestralSampler(Sampler):
    """Draws x_s from the posterior q(x_s | x_t, x_0 estimate).  Ho et al. (2020), algorithm 2.

    ``variance`` is "small", the posterior's own, or "large", that of q(x_t | x_s): Ho's two choices of sigma_t^2
    (sec. 3.2); or "learned", what the network says, in between.  Nichol & Dhariwal (2021), eq. 15. The last move adds
    no noise.
    """

    def __init__(self, num_steps: int, spacing: str = "time", clip_x0: bool = True, variance: str = "large") -> None:
        super().__init__(num_steps, spacing, clip_x0)
        if variance not in VARIANCES:
            raise ValueError(f"variance must be one of {', '.join(VARIANCES)}, got {variance}")
        self.variance = variance
        self.learned_variance = variance == "learned"

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
        x_0, fraction = self.estimate(denoiser, x_t, t, label)
        large = transition_variance(level_t, level_s)
        mean, variance = posterior(x_t, x_0, level_t, level_s, large)
        if s == 0:
            return mean, None
        if self.variance == "large":
            variance = large
        elif self.variance == "learned":
            if fraction is None:
                raise ValueError("variance must be small or large for a network that learns none, got learned")
            # the scales are exact; what multiplies images has their precision
            variance = learned_variance(fraction, variance.to(fraction), large.to(fraction))
        return mean + variance.sqrt() * randn_like(x_t), None
