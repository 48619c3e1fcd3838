"""Callables with the denoiser's interface that steer it."""

from typing import Any, Protocol, cast

import torch
from torch import Tensor

from ddpm_lightning.diffusion.parameterization import Estimate
from ddpm_lightning.diffusion.schedules.base import NoiseSchedule


class X0Estimator(Protocol):
    """What a sampler needs of a denoiser."""

    @property
    def schedule(self) -> NoiseSchedule: ...

    def __call__(self, x_t: Tensor, t: Tensor | int, label: Tensor | None = None) -> Tensor: ...


class GuidedDenoiser:
    """Classifier-free guidance ``eps = (1 + w) eps(label) - w eps(null)``.  Ho & Salimans (2022), eq. 6.

    Stated here in x_0, which is the same, since the noise is affine in x_0 at given x_t and the two
    weights sum to one. w = 0 is the plain conditional estimate. Both passes run as one batch.
    """

    def __init__(self, denoiser: X0Estimator, w: float, null_label: int) -> None:
        self.denoiser = denoiser
        self.w = w
        self.null_label = null_label

    @property
    def schedule(self) -> NoiseSchedule:
        return self.denoiser.schedule

    def __call__(self, x_t: Tensor, t: Tensor | int, label: Tensor | None = None) -> Tensor:
        both = self.denoiser(*self._doubled(x_t, t, label))
        return self._steer(both)

    def estimate(self, x_t: Tensor, t: Tensor | int, label: Tensor | None = None) -> Estimate:
        """The same, with the conditional pass's learned variance, of a denoiser that has one."""
        both: Estimate = cast(Any, self.denoiser).estimate(*self._doubled(x_t, t, label))
        return Estimate(self._steer(both.x_0), None if both.fraction is None else both.fraction.chunk(2)[0])

    def _doubled(self, x_t: Tensor, t: Tensor | int, label: Tensor | None) -> tuple[Tensor, Tensor | int, Tensor]:
        """One batch for both passes."""
        if label is None:
            raise ValueError("guidance needs labels")
        both_labels = torch.cat([label, torch.full_like(label, self.null_label)])
        both_times = torch.cat([t, t]) if isinstance(t, Tensor) else t
        return torch.cat([x_t, x_t]), both_times, both_labels

    def _steer(self, both: Tensor) -> Tensor:
        conditional, unconditional = both.chunk(2)
        return (1 + self.w) * conditional - self.w * unconditional
