"""Network, schedule and parameterization in one: the estimate of x_0 at any time."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ddpm_lightning.diffusion.parameterization import Estimate, Parameterization
from ddpm_lightning.diffusion.schedules.base import NoiseSchedule


class Denoiser(nn.Module):
    """Estimate of the clean image, E[x_0 | x_t] once trained.

    ``net`` maps images (B, C, H, W), network times (B,) in 0..T-1 and labels (B,) or None to an output of the images'
    shape, or of twice the channels: then the second half, in [-1, 1] or near it, says how large the variance of
    p(x_(t-1) | x_t) is, between the schedule's ``beta_small`` and ``beta``. ``image_shape`` is (C, H, W).
    """

    def __init__(
        self, net: nn.Module, schedule: NoiseSchedule, parameterization: Parameterization, image_shape: Sequence[int]
    ) -> None:
        super().__init__()
        self.net = net
        self.schedule = schedule
        self.parameterization = parameterization
        self.image_shape = tuple(image_shape)

    def outputs(self, x_t: Tensor, t: Tensor | int, label: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """The network's raw output (B, C, H, W) in float32, whatever precision it ran in, and the fraction or None."""
        times = t if isinstance(t, Tensor) else torch.full((len(x_t),), t, device=x_t.device)
        # our times start at 1 for the first noisy image, the network's at 0, as in the papers' code
        output = self.net(x_t, times - 1, label).float()
        if output.shape[1] == x_t.shape[1]:
            return output, None
        output, v = output.chunk(2, dim=1)
        return output, (v + 1) / 2  # Nichol & Dhariwal's code

    def estimate(self, x_t: Tensor, t: Tensor | int, label: Tensor | None = None) -> Estimate:
        """Estimate x_0 (B, C, H, W) from x_t at time t: one int in [1, T] for all, or (B,) integers."""
        output, fraction = self.outputs(x_t, t, label)
        return Estimate(self.parameterization.x0(output, x_t, self.schedule(t)), fraction)

    def forward(self, x_t: Tensor, t: Tensor | int, label: Tensor | None = None) -> Tensor:
        """The estimate of x_0 alone."""
        return self.estimate(x_t, t, label).x_0
