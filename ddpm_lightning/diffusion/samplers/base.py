"""What all samplers share: the loop over times, and the estimate at each."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ddpm_lightning.diffusion.forward import noise_from_x0
from ddpm_lightning.diffusion.guidance import X0Estimator
from ddpm_lightning.diffusion.parameterization import Estimate
from ddpm_lightning.diffusion.samplers.spacing import SPACINGS, visited_times

RandnLike = Callable[[Tensor], Tensor]


class Prediction(NamedTuple):
    """Estimates, each (B, C, H, W), that agree: ``x_t = alpha x_0 + sigma noise``."""

    x_0: Tensor
    noise: Tensor


class Stage(NamedTuple):
    """A sampler's state after a move: images x_s (B, C, H, W) at time s, and how far it is, of ``num_steps`` moves."""

    x_s: Tensor
    s: int
    moves_done: int


class Sampler(ABC):
    """The reverse process: ``num_steps`` moves from noise at T to images at 0.

    ``spacing`` is "time", "log_snr" or "karras"; ``clip_x0`` clamps each estimate of x_0 to [-1, 1], and
    takes the noise anew from what is left, so that the two agree. A sampler holds settings alone, so
    one object serves any number of runs.
    """

    calls_per_step = 1
    learned_variance = False  # whether it needs a network that learns one

    def __init__(self, num_steps: int, spacing: str = "time", clip_x0: bool = True) -> None:
        if not isinstance(num_steps, int) or num_steps < 1:
            raise ValueError(f"num_steps must be an integer of at least 1, got {num_steps}")
        if spacing not in SPACINGS:
            raise ValueError(f"spacing must be one of {', '.join(SPACINGS)}, got {spacing}")
        self.num_steps = num_steps
        self.spacing = spacing
        self.clip_x0 = clip_x0

    @property
    def num_calls(self) -> int:
        """Network evaluations of a run; the last move of every sampler takes one."""
        return self.calls_per_step * (self.num_steps - 1) + 1

    def __call__(
        self, denoiser: X0Estimator, x_T: Tensor, label: Tensor | None = None, randn_like: RandnLike = torch.randn_like
    ) -> Tensor:
        """Images (B, C, H, W), near [-1, 1], from standard normal noise x_T and labels (B,) or None."""
        for stage in self.trajectory(denoiser, x_T, label, randn_like):
            x_T = stage.x_s
        return x_T

    @torch.no_grad()
    def trajectory(
        self,
        denoiser: X0Estimator,
        x_T: Tensor,
        label: Tensor | None = None,
        randn_like: RandnLike = torch.randn_like,
        start: int | None = None,
    ) -> Iterator[Stage]:
        """The same, as a stage after each move, the last of them at time 0.

        With ``start`` the images given are at that time, not at T, and of the sampler's times the later ones are left
        out.
        """
        times = visited_times(denoiser.schedule, self.num_steps, self.spacing)
        if start is not None:
            times = [start, *(t for t in times if t < start)]
            # so short a first move would mislead those that extrapolate from it
            if len(times) > 2 and 2 * (start - times[1]) < times[1] - times[2]:
                del times[1]
        x, memory = x_T, None
        for i, (t, s) in enumerate(pairwise(times), start=1):
            x, memory = self.step(denoiser, x, t, s, label, memory, randn_like)
            yield Stage(x, s, i)

    def estimate(self, denoiser: Any, x_t: Tensor, t: int, label: Tensor | None) -> Estimate:
        """Clipped estimate of x_0, and the fraction of a learned variance if this sampler needs it."""
        x_0, fraction = denoiser.estimate(x_t, t, label) if self.learned_variance else (denoiser(x_t, t, label), None)
        return Estimate(x_0.clamp(-1, 1) if self.clip_x0 else x_0, fraction)

    def predict(self, denoiser: X0Estimator, x_t: Tensor, t: int, label: Tensor | None) -> Prediction:
        """Clipped estimate of x_0, and the noise that goes with it."""
        x_0 = self.estimate(denoiser, x_t, t, label).x_0
        return Prediction(x_0, noise_from_x0(x_t, x_0, denoiser.schedule(t)))

    @abstractmethod
    def step(
        self,
        denoiser: X0Estimator,
        x_t: Tensor,
        t: int,
        s: int,
        label: Tensor | None,
        memory: Any,
        randn_like: RandnLike,
    ) -> tuple[Tensor, Any]:
        """Move from x_t to x_s, s < t. ``memory`` is what the step before returned, None at first."""
