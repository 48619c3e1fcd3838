"""UniPC of order 2, with its corrector."""

from typing import NamedTuple

import torch
from torch import Tensor

from ddpm_lightning.diffusion.guidance import X0Estimator
from ddpm_lightning.diffusion.level import NoiseLevel
from ddpm_lightning.diffusion.samplers.base import RandnLike, Sampler
from ddpm_lightning.diffusion.samplers.dpm_solver import exponential_step


class Node(NamedTuple):
    """A time that was visited: its level, lambda = log(alpha / sigma), the state there, and the estimate of x_0."""

    level: NoiseLevel
    lam: Tensor
    x: Tensor
    x_0: Tensor


def predict_next(node: Node, before: Node | None, level_s: NoiseLevel) -> Tensor:
    """UniP-2: the flow from ``node`` to s, x_0 extrapolated in lambda from two nodes, or kept if there is one."""
    if before is None or level_s.sigma == 0:  # lambda is infinite at sigma = 0, so the last step is first order
        return exponential_step(node.x, node.x_0, node.level, level_s)
    ratio = (level_s.log_snr / 2 - node.lam) / (node.lam - before.lam)
    return exponential_step(node.x, torch.lerp(before.x_0, node.x_0, 1 + float(ratio) / 2), node.level, level_s)


def correct(node: Node, before: Node | None, level_s: NoiseLevel, x_0: Tensor) -> Tensor:
    """UniC-2: the flow from ``node`` to s once more, now that the estimate x_0 at s is known.

    x_0 is the polynomial in u = (lambda - lambda_t) / h through both ends and the node before. Its powers are
    integrated exactly against the kernel: psi_k = h int_0^1 exp(-h (1 - u)) u^k du. Zhao et al. (2023), eq. 5
    """
    h = level_s.log_snr / 2 - node.lam
    psi_1 = 1 + torch.expm1(-h) / h
    psi_2 = 1 - 2 * psi_1 / h
    change = x_0 - node.x_0
    moved = exponential_step(node.x, node.x_0, node.level, level_s)
    if before is None:
        return moved + level_s.alpha * psi_1 * change
    r = (before.lam - node.lam) / h
    k = (psi_2 - psi_1) / (r - 1)  # the parabola's share: u^2 - u, over its value at u = r
    return moved + level_s.alpha * (psi_1 - k) * change + level_s.alpha * k / r * (before.x_0 - node.x_0)


class UniPCSampler(Sampler):
    """Predictor-corrector solver of the probability flow: third order at one network call a move.  Zhao et al. (2023).

    The call at the predicted x_t serves twice: to correct x_t, and to predict x_s. No noise is added.
    """

    def __init__(self, num_steps: int, spacing: str = "log_snr", clip_x0: bool = True) -> None:
        super().__init__(num_steps, spacing, clip_x0)

    def step(
        self,
        denoiser: X0Estimator,
        x_t: Tensor,
        t: int,
        s: int,
        label: Tensor | None,
        memory: tuple[Node, Node | None] | None,
        randn_like: RandnLike,
    ) -> tuple[Tensor, tuple[Node, Node | None]]:
        level_t, level_s = denoiser.schedule(t), denoiser.schedule(s)
        x_0 = self.estimate(denoiser, x_t, t, label).x_0
        last, before_last = memory or (None, None)
        if last is not None:
            x_t = correct(last, before_last, level_t, x_0)
        node = Node(level_t, level_t.log_snr / 2, x_t, x_0)
        return predict_next(node, last, level_s), (node, last)
