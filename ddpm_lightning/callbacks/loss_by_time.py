"""The training loss by quarter of the schedule."""

from typing import Any

import lightning as L
import torch
from torch import Tensor

QUARTERS = 4


def quarter_of(t: Tensor, pl_module: Any) -> Tensor:
    """The quarters 0..3 of T in which times (B,) lie."""
    return (t - 1) * QUARTERS // pl_module.denoiser.schedule.num_steps


class LossByTime(L.Callback):
    """Logs ``train/loss_q1`` (t nearest to the images) to ``train/loss_q4`` (nearest to noise).

    Means, as of times that were drawn uniformly, over all batches since the last time the loggers were due; kept on
    the device, read when they are logged.
    """

    def __init__(self) -> None:
        self.sums: Tensor | None = None

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        losses, t, weight = outputs["losses"].float(), outputs["t"], outputs["weight"].float()
        if self.sums is None:
            self.sums = torch.zeros(2, QUARTERS, device=losses.device)
        self.sums.index_add_(1, quarter_of(t, pl_module), torch.stack([weight * losses, weight]))
        if (
            batch_idx + 1
        ) % trainer.accumulate_grad_batches == 0 and trainer.global_step % trainer.log_every_n_steps == 0:
            for q, (total, count) in enumerate(self.sums.T.tolist(), start=1):
                if count:
                    pl_module.log(f"train/loss_q{q}", total / count)
            self.sums = None
