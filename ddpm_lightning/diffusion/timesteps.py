"""The times at which a batch is trained."""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class TrainingTimes(NamedTuple):
    """Integer times t (B,) in [1, T], and weights (B,) that make the loss that of uniform times on average."""

    t: Tensor
    weight: Tensor


class Timesteps(Protocol):
    def __call__(self, batch_size: int, num_steps: int, device: torch.device) -> TrainingTimes:
        """Draw the times of a batch from the device's global random generator."""
        ...


class UniformTimesteps:
    """Each time equally likely.  Ho et al. (2020), algorithm 1."""

    def __call__(self, batch_size: int, num_steps: int, device: torch.device) -> TrainingTimes:
        t = torch.randint(1, num_steps + 1, (batch_size,), device=device)
        return TrainingTimes(t, torch.ones(batch_size, device=device))
