"""How far an estimate is from its target, for each image: the mean over channels and pixels."""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class Distance(Protocol):
    def __call__(self, estimate: Tensor, target: Tensor) -> Tensor:
        """Of two tensors (B, C, H, W), the distance (B,)."""
        ...


class MSE:
    """Mean squared error.  Ho et al. (2020), eq. 14."""

    def __call__(self, estimate: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(estimate, target, reduction="none").flatten(1).mean(1)


class L1:
    """Mean absolute error."""

    def __call__(self, estimate: Tensor, target: Tensor) -> Tensor:
        return F.l1_loss(estimate, target, reduction="none").flatten(1).mean(1)


class Huber:
    """Half the squared error up to ``delta``, linear beyond it, with one slope at the joint.  Huber (1964)."""

    def __init__(self, delta: float = 1.0) -> None:
        if not delta > 0:
            raise ValueError(f"delta must be above 0, got {delta}")
        self.delta = delta

    def __call__(self, estimate: Tensor, target: Tensor) -> Tensor:
        return F.huber_loss(estimate, target, reduction="none", delta=self.delta).flatten(1).mean(1)


class Mixture:
    """The weighted sum ``mse`` * MSE + ``l1`` * L1 + ``huber`` * Huber(delta)."""

    def __init__(self, mse: float = 0.5, l1: float = 0.5, huber: float = 0.0, delta: float = 1.0) -> None:
        weights = (mse, l1, huber)
        if min(weights) < 0 or not sum(weights) > 0:
            raise ValueError(f"mse, l1, huber must be at least 0, and one of them above, got {weights}")
        distances: tuple[Distance, ...] = (MSE(), L1(), Huber(delta))
        self.parts = [(w, d) for w, d in zip(weights, distances, strict=True) if w > 0]

    def __call__(self, estimate: Tensor, target: Tensor) -> Tensor:
        weighted = [weight * distance(estimate, target) for weight, distance in self.parts]
        return torch.stack(weighted).sum(0)
