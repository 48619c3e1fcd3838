"""The variational bound on the likelihood: one term for each time, in bits per dimension."""

import math

import torch
from torch import Tensor

from ddpm_lightning.diffusion.forward import learned_variance, posterior
from ddpm_lightning.diffusion.level import expand
from ddpm_lightning.diffusion.schedules.base import NoiseSchedule

VARIANCES = ("small", "large", "learned")
FAR = 1e6  # standard deviations: where the normal distribution function is 0 or 1, with finite logarithms


def normal_kl(mean_q: Tensor, variance_q: Tensor, mean_p: Tensor, variance_p: Tensor) -> Tensor:
    """KL(q || p) of normal distributions in nats, element by element."""
    ratio = variance_q / variance_p
    return (ratio - 1 - ratio.log() + (mean_q - mean_p) ** 2 / variance_p) / 2


def decoder_log_likelihood(x_0: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """log P of 8-bit values x_0 in [-1, 1] in nats: the normal density over each value's bin.  Ho et al. (2020), eq.
    13.

    The bins are 2/255 wide; those of black and white are open, so that the probabilities add up to 1.
    """
    upper = torch.where(x_0 > 0.999, FAR, (x_0 - mean + 1 / 255) / std)
    lower = torch.where(x_0 < -0.999, -FAR, (x_0 - mean - 1 / 255) / std)
    # above the mean both functions are near 1, and their difference is lost; by symmetry it is that of the other tail
    mirrored = lower > 0
    lower, upper = torch.where(mirrored, -upper, lower), torch.where(mirrored, -lower, upper)
    log_upper = torch.special.log_ndtr(upper)
    return log_upper + (-torch.expm1(torch.special.log_ndtr(lower) - log_upper)).log()


def reverse_variance(schedule: NoiseSchedule, kind: str, t: Tensor, x: Tensor, fraction: Tensor | None) -> Tensor:
    """Variance of p(x_(t-1) | x_t) at times t (B,), of a shape that multiplies images x (B, C, H, W).

    ``kind`` "small" and "large" are the schedule's ``beta_small`` and ``beta``; "learned" lies between them by
    ``fraction`` (B, C, H, W).
    """
    small, large = expand(schedule.beta_small[t], x), expand(schedule.beta[t], x)
    if kind == "learned":
        if fraction is None:
            raise ValueError("variance must be small or large for a network that learns none, got learned")
        return learned_variance(fraction, small, large)
    if kind == "small":
        return small
    return torch.where(expand(t == 1, x), small, large)  # the decoder's, which Ho et al.'s code keeps small


def bound_term(
    schedule: NoiseSchedule, x_0: Tensor, x_t: Tensor, t: Tensor, estimate: Tensor, variance: Tensor
) -> Tensor:
    """The bound's term L_(t-1), (B,) bits per dimension: KL(q(x_s | x_t, x_0) || p(x_s | x_t)), s = t - 1.

    At t = 1 it is the decoder's -log p(x_0 | x_1).  Ho et al. (2020), eq. 5. ``estimate`` (B, C, H, W) is that of x_0,
    ``variance`` that of p; x_0 holds 8-bit values scaled to [-1, 1].
    """
    level_t, level_s, beta = schedule(t), schedule(t - 1), schedule.beta[t]
    mean_q = posterior(x_t, x_0, level_t, level_s, beta).mean
    mean_p = posterior(x_t, estimate, level_t, level_s, beta).mean
    kl = normal_kl(mean_q, expand(schedule.beta_small[t], x_0), mean_p, variance)
    decoder = -decoder_log_likelihood(x_0, mean_p, variance.sqrt())
    return torch.where(expand(t == 1, x_0), decoder, kl).flatten(1).mean(1) / math.log(2)
