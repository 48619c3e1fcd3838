"""The schedule of RIN, for larger images."""

import torch

from ddpm_lightning.diffusion.schedules.base import NoiseSchedule, check_num_steps, with_capped_betas


class SigmoidSchedule(NoiseSchedule):
    """``alpha_bar`` a piece of the sigmoid, from ``start`` to ``end``, its betas cut at .999.

    Jabri, Fleet & Chen (2022), sec. 3.3, and Chen (2023), algorithm 1: ``tau`` is the temperature; larger ones
    give straighter curves.
    """

    def __init__(
        self,
        num_steps: int = 1000,
        start: float = -3.0,
        end: float = 3.0,
        tau: float = 1.0,
        zero_terminal_snr: bool = False,
    ) -> None:
        check_num_steps(num_steps)
        if not end > start:
            raise ValueError(f"end must be above start = {start}, got {end}")
        if not tau > 0:
            raise ValueError(f"tau must be above 0, got {tau}")
        time = torch.linspace(0, 1, num_steps + 1, dtype=torch.float64)
        f = torch.sigmoid(-(start + time * (end - start)) / tau)
        super().__init__(with_capped_betas((f - f[-1]) / (f[0] - f[-1])), zero_terminal_snr)
