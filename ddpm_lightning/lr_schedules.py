"""Learning-rate schedules: the factor on ``optimizer.lr`` for optimizer step n = 0, 1, ..."""

import math
from abc import ABC, abstractmethod


class LRSchedule(ABC):
    """A linear rise over ``warmup_steps``, then what a subclass makes of it.

    Called with a step and with how many the run has, None if it has no end; raises ValueError if the two don't fit the
    settings.
    """

    needs_total = False

    def __init__(self, warmup_steps: int = 0) -> None:
        if warmup_steps < 0:
            raise ValueError(f"warmup_steps must be at least 0, got {warmup_steps}")
        self.warmup_steps = warmup_steps

    def __call__(self, step: int, total: int | None = None) -> float:
        """The factor in [0, 1]."""
        if self.needs_total and total is None:
            raise ValueError("a fall needs an end: trainer.max_steps or trainer.max_epochs, got -1 for both")
        if self.needs_total and total is not None and self.warmup_steps >= total:
            raise ValueError(f"warmup_steps must lie in [0, {total}), the steps of the run, got {self.warmup_steps}")
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        return self.decay(step - self.warmup_steps, 0 if total is None else total - self.warmup_steps)

    @abstractmethod
    def decay(self, step: int, total: int) -> float:
        """The factor in [0, 1] at a step counted from the end of the rise, of ``total`` such steps."""


class Constant(LRSchedule):
    """1, after the rise.  Ho et al. (2020)'s code."""

    def decay(self, step: int, total: int) -> float:
        return 1.0


class Falling(LRSchedule):
    """From 1 after the rise to ``min_lr`` / ``lr``, which would follow the run's last step, in a subclass's shape."""

    needs_total = True

    def __init__(self, lr: float, warmup_steps: int = 0, min_lr: float = 0.0) -> None:
        super().__init__(warmup_steps)
        if not 0 <= min_lr <= lr:
            raise ValueError(f"min_lr must lie in [0, {lr}], up to optimizer.lr, got {min_lr}")
        self.min_factor = min_lr / lr if lr else 0.0

    def decay(self, step: int, total: int) -> float:
        return self.min_factor + (1 - self.min_factor) * self.shape(min(1.0, step / total))

    @abstractmethod
    def shape(self, progress: float) -> float:
        """A fall from 1 to 0 as progress goes from 0 to 1."""


class Cosine(Falling):
    """Half a cosine.  Loshchilov & Hutter (2017), eq. 5."""

    def shape(self, progress: float) -> float:
        return (1 + math.cos(math.pi * progress)) / 2


class Linear(Falling):
    """A straight line."""

    def shape(self, progress: float) -> float:
        return 1 - progress


class Exponential(LRSchedule):
    """``gamma`` every ``interval`` steps, smoothly: gamma^(n / interval)."""

    def __init__(self, gamma: float = 0.5, interval: int = 10_000, warmup_steps: int = 0) -> None:
        super().__init__(warmup_steps)
        if not 0 < gamma <= 1:
            raise ValueError(f"gamma must lie in (0, 1], got {gamma}")
        if interval < 1:
            raise ValueError(f"interval must be at least 1, got {interval}")
        self.gamma = gamma
        self.interval = interval

    def decay(self, step: int, total: int) -> float:
        return float(self.gamma ** (step / self.interval))


class Step(Exponential):
    """The same, all at once at the end of each interval: gamma^floor(n / interval)."""

    def decay(self, step: int, total: int) -> float:
        return float(self.gamma ** (step // self.interval))
