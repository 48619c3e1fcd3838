"""Callables with the denoiser's interface that steer it, or watch it."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from ddpm_lightning.diffusion.level import expand
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

    ``interval`` (low, high): guide only where sigma / alpha lies in it, and save the second pass elsewhere,
    Kynkäänniemi et al. (2024). ``rescale`` in [0, 1]: how far the estimate is brought back to the standard deviation
    of the conditional one, image by image, Lin et al. (2024), eq. 15-16, here in x_0.
    """

    def __init__(
        self,
        denoiser: X0Estimator,
        w: float,
        null_label: int,
        interval: Sequence[float] | None = None,
        rescale: float = 0.0,
    ) -> None:
        check_interval(interval)
        if not 0 <= rescale <= 1:
            raise ValueError(f"rescale must lie in [0, 1], got {rescale}")
        self.denoiser = denoiser
        self.w = w
        self.null_label = null_label
        self.interval = interval
        self.rescale = rescale

    @property
    def schedule(self) -> NoiseSchedule:
        return self.denoiser.schedule

    def __call__(self, x_t: Tensor, t: Tensor | int, label: Tensor | None = None) -> Tensor:
        if self._is_outside(t):
            return self.denoiser(x_t, t, label)
        return self._steer(self.denoiser(*self._doubled(x_t, t, label)), t)

    def estimate(self, x_t: Tensor, t: Tensor | int, label: Tensor | None = None) -> Estimate:
        """The same, with the conditional pass's learned variance, of a denoiser that has one."""
        denoiser = cast(Any, self.denoiser)
        if self._is_outside(t):
            return denoiser.estimate(x_t, t, label)
        both: Estimate = denoiser.estimate(*self._doubled(x_t, t, label))
        return Estimate(self._steer(both.x_0, t), None if both.fraction is None else both.fraction.chunk(2)[0])

    def _is_outside(self, t: Tensor | int) -> bool:
        """Whether one time for all images lies outside the interval; levels of such live on the CPU."""
        return not isinstance(t, Tensor) and not bool(self._is_guided(t))

    def _is_guided(self, t: Tensor | int) -> Tensor:
        level = self.schedule(t)
        if self.interval is None:  # also where alpha is 0
            return torch.ones_like(level.alpha, dtype=torch.bool)
        low, high = self.interval
        return (level.sigma >= low * level.alpha) & (level.sigma <= high * level.alpha)

    def _doubled(self, x_t: Tensor, t: Tensor | int, label: Tensor | None) -> tuple[Tensor, Tensor | int, Tensor]:
        """One batch for both passes."""
        if label is None:
            raise ValueError("guidance needs labels")
        both_labels = torch.cat([label, torch.full_like(label, self.null_label)])
        both_times = torch.cat([t, t]) if isinstance(t, Tensor) else t
        return torch.cat([x_t, x_t]), both_times, both_labels

    def _steer(self, both: Tensor, t: Tensor | int) -> Tensor:
        conditional, unconditional = both.chunk(2)
        w: Any = self.w
        if isinstance(t, Tensor):
            w = expand(self.w * self._is_guided(t), conditional)
        guided = (1 + w) * conditional - w * unconditional
        if not self.rescale:
            return guided
        factor = conditional.flatten(1).std(1) / guided.flatten(1).std(1).clamp(min=1e-8)
        return guided * expand(1 - self.rescale + self.rescale * factor, guided)


def check_interval(interval: Any) -> None:
    """Raise ValueError for anything but None, or two numbers."""
    if interval is None:
        return
    numbers = isinstance(interval, list | tuple) and all(isinstance(x, int | float) for x in interval)
    if not (numbers and len(interval) == 2 and 0 <= interval[0] < interval[1]):
        raise ValueError(f"interval must be two numbers, 0 <= low < high, got {interval}")


class Changed(ABC):
    """A denoiser whose estimates of x_0 are changed before anyone sees them."""

    def __init__(self, denoiser: X0Estimator) -> None:
        self.denoiser = denoiser

    @property
    def schedule(self) -> NoiseSchedule:
        return self.denoiser.schedule

    def __call__(self, x_t: Tensor, t: Tensor | int, label: Tensor | None = None) -> Tensor:
        return self.change(self.denoiser(x_t, t, label))

    def estimate(self, x_t: Tensor, t: Tensor | int, label: Tensor | None = None) -> Estimate:
        """The same, with the variance as it is."""
        x_0, fraction = cast(Any, self.denoiser).estimate(x_t, t, label)
        return Estimate(self.change(x_0), fraction)

    @abstractmethod
    def change(self, x_0: Tensor) -> Tensor:
        """Of an estimate (B, C, H, W)."""


class DynamicThreshold(Changed):
    """Brings estimates of x_0 into [-1, 1] by their ``quantile`` of absolute values, image by image, where it is
    above 1.

    Saharia et al. (2022), sec. 2.3: clamped to that value, and divided by it.
    """

    def __init__(self, denoiser: X0Estimator, quantile: float = 0.995) -> None:
        if not (isinstance(quantile, int | float) and not isinstance(quantile, bool) and 0 < quantile <= 1):
            raise ValueError(f"quantile must lie in (0, 1], got {quantile}")
        super().__init__(denoiser)
        self.quantile = quantile

    def change(self, x_0: Tensor) -> Tensor:
        limit = expand(x_0.flatten(1).abs().quantile(self.quantile, dim=1).clamp(min=1), x_0)
        return x_0.clamp(-limit, limit) / limit


class Clipped(Changed):
    """Estimates of x_0 cut at [-1, 1], for those that don't do so themselves, as samplers do."""

    def change(self, x_0: Tensor) -> Tensor:
        return x_0.clamp(-1, 1)


class Watched(Changed):
    """A denoiser that keeps its newest estimate, ``x_0`` (B, C, H, W), for those who film it."""

    x_0: Tensor

    def change(self, x_0: Tensor) -> Tensor:
        self.x_0 = x_0
        return x_0


def steered(
    denoiser: X0Estimator,
    num_classes: int | None,
    guidance: float = 0.0,
    interval: Sequence[float] | None = None,
    rescale: float = 0.0,
    dynamic_threshold: float | None = None,
    label_drop: float | None = None,
) -> X0Estimator:
    """The denoiser with what was asked for around it.

    Raises ValueError for guidance of one without classes, or one that was never trained without its labels.
    """
    if not (isinstance(guidance, int | float) and guidance >= 0):
        raise ValueError(f"guidance must be at least 0, got {guidance}")
    check_interval(interval)
    if not 0 <= rescale <= 1:
        raise ValueError(f"rescale must lie in [0, 1], got {rescale}")
    if guidance:
        if label_drop == 0:
            raise ValueError(f"guidance must be 0 for a network trained with module.label_drop=0, got {guidance}")
        if num_classes is None:
            raise ValueError(f"guidance must be 0 for a network without labels, got {guidance}")
        denoiser = GuidedDenoiser(denoiser, guidance, num_classes, interval, rescale)
    return denoiser if dynamic_threshold is None else DynamicThreshold(denoiser, dynamic_threshold)
