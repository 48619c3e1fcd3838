"""Learning-rate schedules: the factor on ``optimizer.lr`` for optimizer step n = 0, 1, ..."""

import math
from typing import Protocol


class LRSchedule(Protocol):
    def __call__(self, step: int) -> float:
        """The factor in [0, 1]."""
        ...


class Constant:
    """1, after a linear rise over ``warmup_steps``.  Ho et al. (2020)'s code."""

    def __init__(self, warmup_steps: int = 0) -> None:
        if warmup_steps < 0:
            raise ValueError(f"warmup_steps must be at least 0, got {warmup_steps}")
        self.warmup_steps = warmup_steps

    def __call__(self, step: int) -> float:
        return min(1.0, (step + 1) / max(1, self.warmup_steps))


class Cosine:
    """Half a cosine from 1 to ``min_factor`` at ``num_steps``, after a linear rise.

    Loshchilov & Hutter (2017), eq. 5.
    """

    def __init__(self, num_steps: int, warmup_steps: int = 0, min_factor: float = 0.0) -> None:
        if num_steps < 1:
            raise ValueError(
                f"num_steps must be at least 1 (set trainer.max_steps, whose value it takes), got {num_steps}"
            )
        if not 0 <= warmup_steps < num_steps:
            raise ValueError(f"warmup_steps must lie in [0, num_steps) = [0, {num_steps}), got {warmup_steps}")
        if not 0 <= min_factor <= 1:
            raise ValueError(f"min_factor must lie in [0, 1], got {min_factor}")
        self.num_steps = num_steps
        self.warmup_steps = warmup_steps
        self.min_factor = min_factor

    def __call__(self, step: int) -> float:
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        progress = min(1.0, (step - self.warmup_steps) / (self.num_steps - self.warmup_steps))
        return self.min_factor + (1 - self.min_factor) * (1 + math.cos(math.pi * progress)) / 2
