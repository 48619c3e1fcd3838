"""The times at which a batch is trained."""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn


class TrainingTimes(NamedTuple):
    """Integer times t (B,) in [1, T], and weights (B,) that make the loss that of uniform times on average."""

    t: Tensor
    weight: Tensor


class Timesteps(nn.Module, ABC):
    """Chooses times; what it has learned of the losses is part of the module's state."""

    @abstractmethod
    def forward(self, batch_size: int, num_steps: int, device: torch.device) -> TrainingTimes:
        """Draw the times of a batch from the device's global random generator."""

    def update(self, t: Tensor, losses: Tensor) -> None:
        """Hear the losses (B,) of a batch at its times (B,)."""


class UniformTimesteps(Timesteps):
    """Each time equally likely.  Ho et al. (2020), algorithm 1."""

    def forward(self, batch_size: int, num_steps: int, device: torch.device) -> TrainingTimes:
        t = torch.randint(1, num_steps + 1, (batch_size,), device=device)
        return TrainingTimes(t, torch.ones(batch_size, device=device))


class StratifiedTimesteps(Timesteps):
    """One random offset for the batch, and equal distances: each time equally likely, the batch's mean loss less noisy.

    Kingma et al. (2021), app. I.1.
    """

    def forward(self, batch_size: int, num_steps: int, device: torch.device) -> TrainingTimes:
        place = (torch.rand((), device=device) + torch.arange(batch_size, device=device) / batch_size) % 1
        # a place just below 1 may be rounded to T
        t = ((place * num_steps).long() + 1).clamp(max=num_steps)
        return TrainingTimes(t, torch.ones(batch_size, device=device))


class ImportanceTimesteps(Timesteps):
    """Times in proportion to the root mean square of their loss, weighted against it.  Nichol & Dhariwal (2021), eq.
    18.

    The mean square is a running one: each loss enters with 1 - ``decay`` (the paper keeps the last 10). Uniform until
    every time has been seen ``min_count`` times, and with probability ``uniform_share`` ever after. Ranks share what
    they learn. ``num_steps`` is the schedule's T.
    """

    mean_square: Tensor
    counts: Tensor

    def __init__(
        self, num_steps: int = 1000, decay: float = 0.9, min_count: int = 10, uniform_share: float = 0.001
    ) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"decay must lie in [0, 1), got {decay}")
        if min_count < 1:
            raise ValueError(f"min_count must be at least 1, got {min_count}")
        if not 0 < uniform_share <= 1:
            raise ValueError(f"uniform_share must lie in (0, 1], got {uniform_share}")
        self.decay = decay
        self.min_count = min_count
        self.uniform_share = uniform_share
        self.register_buffer("mean_square", torch.zeros(num_steps))
        self.register_buffer("counts", torch.zeros(num_steps, dtype=torch.int64))

    def probabilities(self) -> Tensor:
        """Of the times 1..T, (T,); they add up to 1."""
        T = len(self.counts)
        rms = self.mean_square.sqrt()
        learned = (1 - self.uniform_share) * rms / rms.sum().clamp(min=1e-20) + self.uniform_share / T
        # decided on the device, without a host read
        return torch.where(self.counts.min() >= self.min_count, learned, torch.full_like(learned, 1 / T))

    def forward(self, batch_size: int, num_steps: int, device: torch.device) -> TrainingTimes:
        if num_steps != len(self.counts):
            raise ValueError(f"num_steps must be {num_steps}, as of the schedule, got {len(self.counts)}")
        p = self.probabilities()
        index = torch.multinomial(p, batch_size, replacement=True)
        return TrainingTimes(index + 1, 1 / (num_steps * p[index]))

    @torch.no_grad()
    def update(self, t: Tensor, losses: Tensor) -> None:
        squares = losses.float().square()
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            t, squares = _gathered(t), _gathered(squares)
        finite = squares.isfinite()  # anything else would stay for ever
        sums = torch.zeros_like(self.mean_square).index_add_(0, t - 1, squares.where(finite, 0.0))
        n = torch.zeros_like(self.counts).index_add_(0, t - 1, finite.long())
        # the first losses are averaged evenly, for want of a mean to start from
        kept = torch.minimum(self.counts / (self.counts + n).clamp(min=1), self.decay**n)
        self.mean_square.copy_(torch.where(n > 0, kept * self.mean_square + (1 - kept) * sums / n, self.mean_square))
        self.counts.add_(n)


def _gathered(x: Tensor) -> Tensor:
    """The tensors (B,) of all ranks as one."""
    parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, x.contiguous())
    return torch.cat(parts)
