"""How likely images are under a denoiser, in bits per dimension: the variational bound, and the probability flow."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ddpm_lightning.diffusion.bound import bound_term, normal_kl, reverse_variance
from ddpm_lightning.diffusion.forward import diffuse, noise_from_x0
from ddpm_lightning.diffusion.guidance import X0Estimator
from ddpm_lightning.diffusion.samplers.spacing import MAX_SIGMA, visited_times
from ddpm_lightning.diffusion.schedules.base import NoiseSchedule

Probes = Callable[[Tensor], Sequence[Tensor]]  # for images, random vectors like them


def prior_term(schedule: NoiseSchedule, x_0: Tensor) -> Tensor:
    """The bound's term L_T, (B,) bits per dimension: KL(q(x_T | x_0) || N(0, I)).  Ho et al. (2020), eq. 5."""
    alpha, sigma = schedule(schedule.num_steps)
    kl = normal_kl(alpha * x_0, sigma**2, torch.zeros_like(sigma), torch.ones_like(sigma))
    return kl.flatten(1).mean(1) / math.log(2)


def reverse_term(
    denoiser: X0Estimator, x_0: Tensor, noise: Tensor, t: Tensor, variance: str, label: Tensor | None = None
) -> Tensor:
    """The bound's term L_(t-1) at times t (B,), (B,) bits per dimension: an estimate from one noise like x_0.

    ``variance`` is that of p(x_(t-1) | x_t), as in ``reverse_variance``; x_0 holds 8-bit values scaled to [-1, 1].
    """
    schedule, learned = denoiser.schedule, variance == "learned"
    x_t = diffuse(x_0, noise, schedule(t))
    model: Any = denoiser
    estimate, fraction = model.estimate(x_t, t, label) if learned else (model(x_t, t, label), None)
    return bound_term(schedule, x_0, x_t, t, estimate, reverse_variance(schedule, variance, t, x_t, fraction))


def chance_of_times(num_times: int, T: int) -> Tensor:
    """With which probability to try each of the times 0..T, (T + 1,) float64, to try ``num_times``: min(1, c / t).

    Terms of the bound fall about as 1 / t, so that those tried, each divided by its probability, are of one size.
    """
    t = torch.arange(1, T + 1, dtype=torch.float64)
    low, high = 0.0, float(T)
    for _ in range(60):  # halves until nothing is left between them
        middle = (low + high) / 2
        low, high = (middle, high) if (middle / t).clamp(max=1).sum() < num_times else (low, middle)
    return torch.cat([torch.zeros(1, dtype=torch.float64), (high / t).clamp(max=1)])


def spread_times(num_times: int, T: int, offset: Tensor) -> Tensor:
    """``num_times`` different times in [1, T] for each image, (num_times, B), from offsets (B,) in [0, 1), float64.

    Systematic sampling: over uniform offsets each time is met with its chance of ``chance_of_times``, so that the sum
    of terms divided by their chances is unbiased; with T times each is met once.
    """
    ends = chance_of_times(num_times, T).cumsum(0)
    ends[-1] = num_times  # the very sum, which rounding may miss
    wanted = torch.arange(num_times, dtype=torch.float64).view(-1, 1) + offset
    return torch.searchsorted(ends, wanted, right=True)


def flow_times(schedule: NoiseSchedule, num_steps: int, spacing: str) -> list[int]:
    """Rising times from 1 for the flow, at most ``num_steps + 1``, up to sigma / alpha = MAX_SIGMA.

    Beyond it there is nothing left to integrate but noise, and the cosine schedule's last move, from 642 to 20 291,
    would be off by more than the whole figure. Raises ValueError unless num_steps < T.
    """
    times = visited_times(schedule, num_steps + 1, spacing)[-2::-1]
    ratio = schedule.table.snr.rsqrt()
    return [t for t in times if t == 1 or ratio[t] <= MAX_SIGMA]


def flow_slope(denoiser: X0Estimator, y: Tensor, t: int, label: Tensor | None, probes: Probes) -> tuple[Tensor, Tensor]:
    """Of the probability flow in y = x_t / alpha over sigma / alpha: the noise estimate, and its divergence (B,).

    The divergence is Hutchinson's estimate, the mean of v . J v over the probes.  Song et al. (2021), eq. 40.
    """
    level = denoiser.schedule(t)
    with torch.enable_grad():
        y = y.detach().requires_grad_()
        x_t = level.alpha * y
        noise = noise_from_x0(x_t, denoiser(x_t, t, label), level)
        traces = [
            (v * torch.autograd.grad(noise, y, v, retain_graph=True)[0]).flatten(1).sum(1) for v in probes(y.detach())
        ]
    return noise.detach(), torch.stack(traces).mean(0)


def flow_log_density(
    denoiser: X0Estimator,
    x: Tensor,
    times: Sequence[int],
    label: Tensor | None,
    probes: Probes,
    on_move: Callable[[], None] = lambda: None,
) -> Tensor:
    """log density (B,) in nats of images x at time ``times[0]`` under the flow that starts from N(0, I) at
    ``times[-1]``.

    Song et al. (2021), eq. 39, by Heun's method over the given rising times: the error falls with the square of their
    distances. Unbiased in the probes. Needs alpha > 0 at the last time.
    """
    first, last = denoiser.schedule(times[0]), denoiser.schedule(times[-1])
    y, growth = x / first.alpha, x.new_zeros(len(x))
    for s, t in pairwise(times):
        level_s, level_t = denoiser.schedule(s), denoiser.schedule(t)
        move = level_t.sigma / level_t.alpha - level_s.sigma / level_s.alpha
        noise, divergence = flow_slope(denoiser, y, s, label, probes)
        noise_t, divergence_t = flow_slope(denoiser, y + move * noise, t, label, probes)
        y = y + move * (noise + noise_t) / 2
        growth = growth + move * (divergence + divergence_t) / 2
        on_move()
    from_y_to_x = x[0].numel() * (last.alpha / first.alpha).log()
    return normal_log_density(last.alpha * y) + growth + from_y_to_x


def normal_log_density(noise: Tensor) -> Tensor:
    """Of N(0, I), (B,) nats."""
    return -(noise**2 + math.log(2 * math.pi)).flatten(1).sum(1) / 2


def flow_bound(
    denoiser: X0Estimator,
    x_0: Tensor,
    noise: Tensor,
    times: Sequence[int],
    variance: str,
    label: Tensor | None,
    probes: Probes,
    on_move: Callable[[], None] = lambda: None,
) -> Tensor:
    """A bound on -log P(x_0), (B,) bits per dimension: an estimate from one noise like x_0. ``times`` rise from 1.

    E[log q(x_1 | x_0) - log p(x_1) - log P(x_0 | x_1)] over q(x_1 | x_0): the flow has a density of x_1, and
    P(x_0 | x_1) is the bound's own discretised decoder. So the last step, on which the 8 bits hang, needs no further
    noise to make them continuous, and the figure bounds a probability, up to the error of the integration.
    """
    level = denoiser.schedule(1)
    decoder = reverse_term(
        denoiser, x_0, noise, torch.ones(len(x_0), dtype=torch.int64, device=x_0.device), variance, label
    )
    log_p = flow_log_density(denoiser, diffuse(x_0, noise, level), times, label, probes, on_move)
    dimensions = x_0[0].numel()
    log_q = normal_log_density(noise) - dimensions * level.sigma.log()
    return (log_q - log_p) / (dimensions * math.log(2)) + decoder
