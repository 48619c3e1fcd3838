"""Weight of an image's loss, by its noise level.  Weights multiply an error of the *noise* estimate."""

from typing import Protocol

import torch
from torch import Tensor

from ddpm_lightning.diffusion.level import NoiseLevel


class Weighting(Protocol):
    def __call__(self, level: NoiseLevel, time: Tensor) -> Tensor:
        """The weight (B,) at a level (B,) and its relative time t / T (B,) in (0, 1]."""
        ...


class Uniform:
    """L_simple, for every parameterization.  Ho et al. (2020), eq. 14."""

    def __call__(self, level: NoiseLevel, time: Tensor) -> Tensor:
        return torch.ones_like(level.alpha)


class ClampedSNR:
    """SNR between ``min`` and ``max``: the error of x_0 where that is moderate, of the noise elsewhere."""

    def __init__(self, min: float = 0.1, max: float = 1.0) -> None:
        if not 0 <= min <= max:
            raise ValueError(f"min must lie in [0, max] = [0, {max}], got {min}")
        if not max > 0:
            raise ValueError(f"max must be above 0, got {max}")
        self.min = min
        self.max = max

    def __call__(self, level: NoiseLevel, time: Tensor) -> Tensor:
        return level.snr.clamp(self.min, self.max)


class LinearTime:
    """t / T: noisier images count more."""

    def __call__(self, level: NoiseLevel, time: Tensor) -> Tensor:
        return time


class InverseTime:
    """``scale`` T / t: cleaner images count more. At T = 1000 and the default scale this is 1 / t."""

    def __init__(self, scale: float = 0.001) -> None:
        if not scale > 0:
            raise ValueError(f"scale must be above 0, got {scale}")
        self.scale = scale

    def __call__(self, level: NoiseLevel, time: Tensor) -> Tensor:
        return self.scale / time


OF_TIME_ALONE = (Uniform, LinearTime, InverseTime)  # these mean the same for the error of any output


class MinSNR:
    """min(gamma / SNR, 1): gentler on nearly clean images.  Hang et al. (2023), sec. 3.4."""

    def __init__(self, gamma: float = 5.0) -> None:
        if not gamma > 0:
            raise ValueError(f"gamma must be above 0, got {gamma}")
        self.gamma = gamma

    def __call__(self, level: NoiseLevel, time: Tensor) -> Tensor:
        return (self.gamma / level.snr).clamp(max=1)


class SoftMinSNR:
    """gamma / (SNR + gamma): min-SNR with its corner rounded.  Crowson et al. (2024), sec. 3.4."""

    def __init__(self, gamma: float = 4.0) -> None:
        if not gamma > 0:
            raise ValueError(f"gamma must be above 0, got {gamma}")
        self.gamma = gamma

    def __call__(self, level: NoiseLevel, time: Tensor) -> Tensor:
        return self.gamma / (level.snr + self.gamma)


class P2:
    """1 / (k + SNR)^gamma: less for the clean-up of imperceptible detail.  Choi et al. (2022), eq. 8."""

    def __init__(self, k: float = 1.0, gamma: float = 1.0) -> None:
        if not k > 0:
            raise ValueError(f"k must be above 0, got {k}")
        if gamma < 0:
            raise ValueError(f"gamma must be at least 0, got {gamma}")
        self.k = k
        self.gamma = gamma

    def __call__(self, level: NoiseLevel, time: Tensor) -> Tensor:
        return (self.k + level.snr) ** -self.gamma
