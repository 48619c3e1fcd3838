"""An experiment: a discriminator that tells estimates of x_0 from images."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from ddpm_lightning.diffusion.denoiser import Denoiser
from ddpm_lightning.diffusion.loss import Term, Trial


class Discriminator(nn.Module):
    """Images (B, C, H, W) -> scores (B,), higher for those it takes to be real. At first 0 for all."""

    def __init__(self, channels: int, base_channels: int) -> None:
        super().__init__()
        widths = [channels, base_channels, 2 * base_channels, 4 * base_channels]
        self.layers = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in zip(widths, widths[1:], strict=False)
        )
        self.score = nn.Linear(widths[-1], 1)
        nn.init.zeros_(self.score.weight)
        nn.init.zeros_(self.score.bias)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2)
        return self.score(x.mean((2, 3))).squeeze(1).float()


class Adversarial(Term):
    """``weight`` * -D(estimate) for the denoiser, and for the discriminator D the hinge loss, both times alpha^2.

    Experimental: not from a paper, and no figure was measured with it. Where little of x_0 is left its estimate is a
    blur whatever the network does: hence alpha^2. Each part leaves the other's parameters alone, so one optimizer
    serves both, with one learning rate; gradients are clipped by their joint norm.  Lim & Ye (2017), eq. 8-9, for the
    losses.
    """

    def __init__(self, channels: int, weight: float = 0.01, base_channels: int = 32) -> None:
        super().__init__()
        if not weight > 0:
            raise ValueError(f"weight must be above 0, got {weight}")
        if base_channels < 1:
            raise ValueError(f"base_channels must be at least 1, got {base_channels}")
        self.channels = channels
        self.weight = weight
        self.discriminator = Discriminator(channels, base_channels)

    def forward(self, denoiser: Denoiser, trial: Trial) -> Tensor:
        estimate = trial.estimate(denoiser).clamp(-1, 1)
        frozen = {name: parameter.detach() for name, parameter in self.discriminator.named_parameters()}
        fooled = functional_call(self.discriminator, frozen, (estimate,))
        real, fake = self.discriminator(torch.cat([trial.x_0, estimate.detach()])).chunk(2)
        hinge = F.relu(1 - real) + F.relu(1 + fake)
        return denoiser.schedule(trial.t).alpha ** 2 * (hinge - self.weight * fooled)
