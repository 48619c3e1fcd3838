"""The schedule of DDPM."""

import torch

from ddpm_lightning.diffusion.schedules.base import MAX_BETA, NoiseSchedule, alpha_bar_from_betas, check_num_steps


class LinearSchedule(NoiseSchedule):
    """Betas in equal steps from ``beta_start`` to ``beta_end``, both given for T = 1000.  Ho et al. (2020), sec. 4.

    For other T they are scaled by 1000 / T, so that the last image is as noisy (cut at .999, which
    matters up to T = 20 at the default beta_end).
    """

    def __init__(
        self,
        num_steps: int = 1000,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        zero_terminal_snr: bool = False,
    ) -> None:
        check_num_steps(num_steps)
        if not 0 < beta_start < 1:
            raise ValueError(f"beta_start must lie in (0, 1), got {beta_start}")
        if not beta_start <= beta_end < 1:
            raise ValueError(f"beta_end must lie in [beta_start, 1) = [{beta_start}, 1), got {beta_end}")
        # from the end, so that a single step is the last, and leads to noise
        betas = torch.linspace(beta_end, beta_start, num_steps, dtype=torch.float64).flip(0) * (1000 / num_steps)
        super().__init__(alpha_bar_from_betas(betas.clamp(max=MAX_BETA)), zero_terminal_snr)
