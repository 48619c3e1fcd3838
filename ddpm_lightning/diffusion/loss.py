"""What training minimises: terms, each a function of one trial of the denoiser."""

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor, nn

from ddpm_lightning.diffusion.bound import VARIANCES, bound_term, reverse_variance
from ddpm_lightning.diffusion.denoiser import Denoiser
from ddpm_lightning.diffusion.distance import Distance
from ddpm_lightning.diffusion.forward import diffuse
from ddpm_lightning.diffusion.level import expand
from ddpm_lightning.diffusion.weighting import OF_TIME_ALONE, Weighting

SPACES = ("noise", "output")


class Trial(NamedTuple):
    """A batch that was made noisy, and what the network made of it: all (B, C, H, W), but for the times t (B,).

    ``fraction`` is the network's learned variance, None if it learns none.
    """

    x_0: Tensor
    noise: Tensor
    x_t: Tensor
    t: Tensor
    output: Tensor
    fraction: Tensor | None

    def estimate(self, denoiser: Denoiser) -> Tensor:
        """Of x_0, (B, C, H, W)."""
        return denoiser.parameterization.x0(self.output, self.x_t, denoiser.schedule(self.t))


def attempt(
    denoiser: Denoiser,
    x_0: Tensor,
    t: Tensor,
    noise: Tensor,
    label: Tensor | None = None,
    perturbation: Tensor | None = None,
) -> Trial:
    """Make images x_0 (B, C, H, W) in [-1, 1] noisy at times t (B,) in [1, T], and let the network see them.

    ``perturbation``, like x_0, is added to the noise that the network sees, but not to what it should answer: so it
    learns to stand its own errors.  Ning et al. (2023), algorithm 1.
    """
    seen = noise if perturbation is None else noise + perturbation
    x_t = diffuse(x_0, seen, denoiser.schedule(t))
    return Trial(x_0, noise, x_t, t, *denoiser.outputs(x_t, t, label))


class Term(nn.Module, ABC):
    """One of the terms of an objective. The term's own parameters, if it has any, are trained with the network's."""

    @abstractmethod
    def forward(self, denoiser: Denoiser, trial: Trial) -> Tensor:
        """The loss (B,) of each image."""


class Denoising(Term):
    """``weight * distance(gain * output, gain * target)``.  Ho et al. (2020), eq. 14.

    In the ``space`` "noise" the gain turns errors of the output into errors of the noise estimate. So uniform weighting
    is L_simple whatever is predicted, and each weighting and distance acts in noise space. In the space "output" it is
    1: the plain error of what the network predicts, such as that of v in Salimans & Ho (2022), and the only way to
    learn anything at a time without signal, where the noise estimate is exact whatever the output.
    """

    def __init__(self, weighting: Weighting, distance: Distance, space: str = "noise") -> None:
        super().__init__()
        if space not in SPACES:
            raise ValueError(f"space must be one of {', '.join(SPACES)}, got {space}")
        if space == "output" and not isinstance(weighting, OF_TIME_ALONE):
            raise ValueError("space must be noise for weights by SNR, which are those of the noise's error, got output")
        self.weighting = weighting
        self.distance = distance
        self.space = space

    def forward(self, denoiser: Denoiser, trial: Trial) -> Tensor:
        level = denoiser.schedule(trial.t)
        output, target = trial.output, denoiser.parameterization.target(trial.x_0, trial.noise, level)
        weight = self.weighting(level, trial.t / denoiser.schedule.num_steps)
        if self.space == "output":
            return weight * self.distance(output, target)
        gain = expand(denoiser.parameterization.noise_gain(level), output)
        return weight * self.distance(gain * output, gain * target)


class VariationalBound(Term):
    """``weight`` * T * L_(t-1): on average over uniform times the bound on bits per dimension, but for L_T, a constant.

    ``variance`` is that of p(x_(t-1) | x_t): "small", "large" or "learned". With ``only_variance`` the mean is taken as
    given, which with the weight .001 beside L_simple is the hybrid loss.  Nichol & Dhariwal (2021), eq. 16.
    """

    def __init__(self, weight: float = 1.0, variance: str = "large", only_variance: bool = False) -> None:
        super().__init__()
        if not weight > 0:
            raise ValueError(f"weight must be above 0, got {weight}")
        if variance not in VARIANCES:
            raise ValueError(f"variance must be one of {', '.join(VARIANCES)}, got {variance}")
        if only_variance and variance != "learned":
            raise ValueError(f"only_variance must be false for variance={variance}, got true")
        self.weight = weight
        self.variance = variance
        self.only_variance = only_variance

    def forward(self, denoiser: Denoiser, trial: Trial) -> Tensor:
        schedule, t = denoiser.schedule, trial.t
        estimate = trial.estimate(denoiser)
        if self.only_variance:
            estimate = estimate.detach()
        variance = reverse_variance(schedule, self.variance, t, trial.x_t, trial.fraction)
        return self.weight * schedule.num_steps * bound_term(schedule, trial.x_0, trial.x_t, t, estimate, variance)


def denoising_loss(
    denoiser: Denoiser,
    weighting: Weighting,
    distance: Distance,
    x_0: Tensor,
    t: Tensor,
    noise: Tensor,
    label: Tensor | None = None,
) -> Tensor:
    """The ``Denoising`` loss of each image, (B,), in noise space. Draws nothing itself."""
    return Denoising(weighting, distance)(denoiser, attempt(denoiser, x_0, t, noise, label))
