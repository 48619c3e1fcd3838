"""The schedule of Improved DDPM."""

import torch

from ddpm_lightning.diffusion.schedules.base import NoiseSchedule, check_num_steps, with_capped_betas


class CosineSchedule(NoiseSchedule):
    """``alpha_bar`` a squared cosine, its betas cut at .999.  Nichol & Dhariwal (2021), eq. 17."""

    def __init__(self, num_steps: int = 1000, offset: float = 0.008, zero_terminal_snr: bool = False) -> None:
        check_num_steps(num_steps)
        if not 0 <= offset < 1:
            raise ValueError(f"offset must lie in [0, 1), got {offset}")
        time = torch.linspace(0, 1, num_steps + 1, dtype=torch.float64)
        f = torch.cos((time + offset) / (1 + offset) * torch.pi / 2) ** 2
        super().__init__(with_capped_betas(f / f[0]), zero_terminal_snr)
