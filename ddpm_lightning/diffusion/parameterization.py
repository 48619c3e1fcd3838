"""What the network's output means: the noise, the clean image, or the velocity between them."""

from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from ddpm_lightning.diffusion.forward import x0_from_noise
from ddpm_lightning.diffusion.level import NoiseLevel


class Estimate(NamedTuple):
    """Of x_0 (B, C, H, W); and like it, how far a learned variance lies between its bounds, None if none is learned."""

    x_0: Tensor
    fraction: Tensor | None


@runtime_checkable
class Parameterization(Protocol):
    """Three formulas that tie a network's output (B, C, H, W) to the images."""

    def target(self, x_0: Tensor, noise: Tensor, level: NoiseLevel) -> Tensor:
        """The output of a perfect network."""
        ...

    def x0(self, output: Tensor, x_t: Tensor, level: NoiseLevel) -> Tensor:
        """The estimate of x_0 that an output stands for."""
        ...

    def noise_gain(self, level: NoiseLevel) -> Tensor:
        """Error of the noise estimate per unit of output error; of the level's shape."""
        ...


class Epsilon:
    """The output estimates the noise.  Ho et al. (2020), sec. 3.2."""

    def target(self, x_0: Tensor, noise: Tensor, level: NoiseLevel) -> Tensor:
        return noise

    def x0(self, output: Tensor, x_t: Tensor, level: NoiseLevel) -> Tensor:
        return x0_from_noise(x_t, output, level)

    def noise_gain(self, level: NoiseLevel) -> Tensor:
        return torch.ones_like(level.alpha)


class CleanImage:
    """The output estimates x_0."""

    def target(self, x_0: Tensor, noise: Tensor, level: NoiseLevel) -> Tensor:
        return x_0

    def x0(self, output: Tensor, x_t: Tensor, level: NoiseLevel) -> Tensor:
        return output

    def noise_gain(self, level: NoiseLevel) -> Tensor:
        return level.alpha / level.sigma


class Velocity:
    """The output estimates v = alpha noise - sigma x_0.  Salimans & Ho (2022), sec. 4 and app. D."""

    def target(self, x_0: Tensor, noise: Tensor, level: NoiseLevel) -> Tensor:
        alpha, sigma = level.like(x_0)
        return alpha * noise - sigma * x_0

    def x0(self, output: Tensor, x_t: Tensor, level: NoiseLevel) -> Tensor:
        alpha, sigma = level.like(x_t)
        return alpha * x_t - sigma * output

    def noise_gain(self, level: NoiseLevel) -> Tensor:
        return level.alpha
