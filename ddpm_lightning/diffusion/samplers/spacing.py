"""Which times a sampler visits: from T, or just below it, down to 0."""

from collections.abc import Callable

import torch
from torch import Tensor

from ddpm_lightning.diffusion.schedules.base import NoiseSchedule

# The cosine schedule ends at sigma / alpha = 20 291, where steps in log-SNR would be wasted and Heun's
# would overshoot. Grids in noise level start here; the linear schedule (157) is not touched.
MAX_SIGMA = 160.0
KARRAS_RHO = 7.0


def uniform_in_time(schedule: NoiseSchedule, num_steps: int) -> Tensor:
    """Equal steps of t from T to 1."""
    return torch.linspace(schedule.num_steps, 1, num_steps, dtype=torch.float64)


def uniform_in_log_snr(schedule: NoiseSchedule, num_steps: int) -> Tensor:
    """Equal steps of log-SNR.  Lu et al. (2022), sec. 3.4."""
    log_sigma = _log_sigma(schedule)
    return _time_of(torch.linspace(log_sigma[-1], log_sigma[0], num_steps, dtype=torch.float64), log_sigma)


def karras(schedule: NoiseSchedule, num_steps: int) -> Tensor:
    """Equal steps of (sigma / alpha)^(1/7).  Karras et al. (2022), eq. 5."""
    log_sigma = _log_sigma(schedule)
    high, low = (log_sigma[[-1, 0]] / KARRAS_RHO).exp()
    return _time_of(KARRAS_RHO * torch.linspace(high, low, num_steps, dtype=torch.float64).log(), log_sigma)


SPACINGS: dict[str, Callable[[NoiseSchedule, int], Tensor]] = {
    "time": uniform_in_time,
    "log_snr": uniform_in_log_snr,
    "karras": karras,
}


def _log_sigma(schedule: NoiseSchedule) -> Tensor:
    """log(sigma / alpha) at t = 1, 2, ... up to MAX_SIGMA; of t = 1 alone, if that is all there is."""
    log_sigma = -schedule.table.log_snr[1:] / 2
    return log_sigma[: max(1, int((log_sigma <= torch.tensor(MAX_SIGMA).log() + 1e-9).sum()))]


def _time_of(wanted: Tensor, log_sigma: Tensor) -> Tensor:
    """Real-valued times at which log(sigma / alpha) has the wanted values, linearly interpolated."""
    if len(log_sigma) == 1:
        return torch.ones_like(wanted)
    right = torch.searchsorted(log_sigma, wanted.contiguous()).clamp(1, len(log_sigma) - 1)
    low, high = log_sigma[right - 1], log_sigma[right]
    return right + (wanted - low) / (high - low)  # index i of the table is time i + 1


def visited_times(schedule: NoiseSchedule, num_steps: int, spacing: str) -> list[int]:
    """``num_steps + 1`` strictly falling times that end in ..., 0.

    Real-valued times are rounded, and spread where they would coincide. Raises ValueError unless
    1 <= num_steps <= T.
    """
    T = schedule.num_steps
    if num_steps > T:
        raise ValueError(f"num_steps must lie in [1, {T}], the steps that the schedule has, got {num_steps}")
    rising = SPACINGS[spacing](schedule, num_steps).flip(0).round().clamp(1, T).long().tolist()
    if schedule.ends_in_noise:  # of which there is none at the times before T, where the other grids would begin
        rising[-1] = T
    for i in range(1, num_steps):
        rising[i] = max(rising[i], rising[i - 1] + 1)
    for i in range(num_steps):
        rising[i] = min(rising[i], T - (num_steps - 1 - i))
    return [*reversed(rising), 0]
