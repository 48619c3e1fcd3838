"""A noise schedule: integer time -> noise level."""

import torch
from torch import Tensor, nn

from ddpm_lightning.diffusion.level import NoiseLevel

MAX_BETA = 0.999  # Nichol & Dhariwal (2021), sec. 3.2: the singularity at t = T is cut off here


class NoiseSchedule(nn.Module):
    """Noise levels of the times 0..T, made by a subclass from ``alpha_bar`` (T + 1,), float64.

    ``alpha_bar[0]`` is 1, the clean image; then it falls strictly, and stays at or above 0. Scales are
    taken in float64, since 1 - alpha_bar cancels in float32. ``zero_terminal_snr`` moves the levels so that x_T is
    pure noise, as sampling takes it to be.

    ``beta`` and ``beta_small`` (T + 1,) are Ho's beta_t and beta-tilde_t, the variances of q(x_t | x_(t-1)) and of
    q(x_(t-1) | x_t, x_0). The latter is 0 at t = 1, and its value at t = 2 stands there, so that it has a logarithm.
    """

    alpha: Tensor
    sigma: Tensor
    beta: Tensor
    beta_small: Tensor

    def __init__(self, alpha_bar: Tensor, zero_terminal_snr: bool = False) -> None:
        super().__init__()
        if alpha_bar.ndim != 1 or len(alpha_bar) < 2 or alpha_bar.dtype != torch.float64:
            raise ValueError(
                f"alpha_bar must be float64 of shape (T + 1,), got {alpha_bar.dtype} of {tuple(alpha_bar.shape)}"
            )
        if alpha_bar[0] != 1 or not (alpha_bar.diff() < 0).all() or not alpha_bar[-1] >= 0:
            raise ValueError("alpha_bar must start at 1, fall strictly, and stay at or above 0")
        if zero_terminal_snr:
            alpha_bar = with_zero_terminal_snr(alpha_bar)
        self.num_steps = len(alpha_bar) - 1
        # not buffers: exact tables stay on the CPU in float64, where a sampler reads single levels for free
        self.table = NoiseLevel(alpha_bar.sqrt(), (1 - alpha_bar).sqrt())
        self.levels = [NoiseLevel(*scales) for scales in zip(*(x.unbind() for x in self.table), strict=True)]
        self.register_buffer("alpha", self.table.alpha.float(), persistent=False)
        self.register_buffer("sigma", self.table.sigma.float(), persistent=False)
        beta = torch.cat([torch.zeros_like(alpha_bar[:1]), 1 - alpha_bar[1:] / alpha_bar[:-1]])
        small = beta * torch.cat([torch.ones_like(alpha_bar[:1]), (1 - alpha_bar[:-1]) / (1 - alpha_bar[1:])])
        small[1] = small[2] if self.num_steps > 1 else beta[1]
        self.register_buffer("beta", beta.float(), persistent=False)
        self.register_buffer("beta_small", small.float(), persistent=False)

    @property
    def ends_in_noise(self) -> bool:
        """Whether nothing of x_0 is left at T."""
        return bool(self.table.alpha[-1] == 0)

    @property
    def alpha_bar(self) -> Tensor:
        """Squared signal scale at the times 0..T, float64 on the CPU."""
        return self.table.alpha**2

    def forward(self, t: Tensor | int) -> NoiseLevel:
        """The level at times t in [0, T]: (B,) float32 on the module's device, or float64 scalars for an int.

        The scalars live on the CPU, and multiply images on any device without a host read.
        """
        if isinstance(t, Tensor):
            return NoiseLevel(self.alpha[t], self.sigma[t])
        return self.levels[t]


def check_num_steps(num_steps: int) -> int:
    """The number of steps T as it is, if it is a positive integer."""
    if not isinstance(num_steps, int) or num_steps < 1:
        raise ValueError(f"num_steps must be an integer of at least 1, got {num_steps}")
    return num_steps


def alpha_bar_from_betas(betas: Tensor) -> Tensor:
    """``alpha_bar`` (T + 1,) of the betas (T,): 1, then the running product of 1 - beta.  Ho et al. (2020), eq. 4."""
    return torch.cat([torch.ones(1, dtype=betas.dtype), (1 - betas).cumprod(0)])


def with_capped_betas(alpha_bar: Tensor) -> Tensor:
    """``alpha_bar`` (T + 1,) with every beta = 1 - alpha_bar_t / alpha_bar_(t-1) cut at MAX_BETA."""
    return alpha_bar_from_betas((1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=MAX_BETA))


def with_zero_terminal_snr(alpha_bar: Tensor) -> Tensor:
    """``alpha_bar`` (T + 1,) with alpha shifted to 0 at T, and scaled to what it was at t = 1.

    Lin et al. (2024), algorithm 1, whose first step is our t = 1.
    """
    if len(alpha_bar) == 2:
        raise ValueError("zero_terminal_snr must be false for num_steps=1, got true")
    alpha = alpha_bar.sqrt()
    moved = (alpha[1:] - alpha[-1]) * alpha[1] / (alpha[1] - alpha[-1])
    return torch.cat([alpha_bar[:1], moved**2])
