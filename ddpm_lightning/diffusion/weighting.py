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


class MinSNR:
    """min(gamma / SNR, 1): gentler on nearly clean images.  Hang et al. (2023), sec. 3.4."""

    def __init__(self, gamma: float = 5.0) -> None:
        if not gamma > 0:
            raise ValueError(f"gamma must be above 0, got {gamma}")
        self.gamma = gamma

    def __call__(self, level: NoiseLevel, time: Tensor) -> Tensor:
        return (self.gamma / level.snr).clamp(max=1)
