"""RePaint: any sampler, with some pixels given."""

from collections.abc import Iterator

import torch
from torch import Tensor

from ddpm_lightning.diffusion.forward import diffuse, transition_variance
from ddpm_lightning.diffusion.guidance import X0Estimator
from ddpm_lightning.diffusion.level import NoiseLevel
from ddpm_lightning.diffusion.samplers.base import RandnLike, Sampler, Stage
from ddpm_lightning.diffusion.samplers.spacing import visited_times


def renoise(x_s: Tensor, noise: Tensor, level_s: NoiseLevel, level_t: NoiseLevel) -> Tensor:
    """Sample q(x_t | x_s), s < t, with the given standard normal noise.  Kingma et al. (2021), eq. 22."""
    return level_t.alpha / level_s.alpha * x_s + transition_variance(level_t, level_s).sqrt() * noise


class Inpainting:
    """Samples the pixels where ``known`` (H, W) or (C, H, W) is false; the others are those of ``image`` (C, H, W).

    After each move the known pixels are put in, at the noise of that time. Every ``jump`` moves the state is made
    noisy again as far back, and those moves repeated, ``resamples`` times in all, so that both parts come to
    agree.  Lugmayr et al. (2022), algorithm 1 and sec. 4.2.
    """

    def __init__(self, sampler: Sampler, image: Tensor, known: Tensor, jump: int = 10, resamples: int = 10) -> None:
        for name, value in (("jump", jump), ("resamples", resamples)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.sampler = sampler
        self.image = image
        self.known = known.bool()
        self.jump = jump
        self.resamples = resamples

    @property
    def num_moves(self) -> int:
        """Of a run, repetitions included."""
        return self.sampler.num_steps * self.resamples

    @torch.no_grad()
    def trajectory(
        self, denoiser: X0Estimator, x_T: Tensor, label: Tensor | None, randn_like: RandnLike
    ) -> Iterator[Stage]:
        """A stage after each move, the last of them at time 0."""
        schedule = denoiser.schedule
        times = visited_times(schedule, self.sampler.num_steps, self.sampler.spacing)
        x, moves = x_T, 0
        for first in range(0, len(times) - 1, self.jump):
            stretch = times[first : first + self.jump + 1]
            for attempt in range(self.resamples):
                if attempt > 0:
                    x = renoise(x, randn_like(x), schedule(stretch[-1]), schedule(stretch[0]))
                memory = None  # of other images than these
                for t, s in zip(stretch, stretch[1:], strict=False):
                    x, memory = self.sampler.step(denoiser, x, t, s, label, memory, randn_like)
                    given = self.image.expand_as(x)
                    x = torch.where(self.known, given if s == 0 else diffuse(given, randn_like(x), schedule(s)), x)
                    moves += 1
                    yield Stage(x, s, moves)
