"""How far an estimate is from its target, for each image: the mean over channels and pixels."""

from typing import Protocol

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
