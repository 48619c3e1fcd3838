"""The held-out loss of other weights than those that validate."""

from itertools import islice
from typing import Any

import lightning as L
import torch

from ddpm_lightning.callbacks.ema import averaged, find_ema
from ddpm_lightning.checkpoint import RAW


class HeldOutByWeights(L.Callback):
    """At each validation, logs ``val/loss_raw`` and ``val/loss_<decay>`` beside ``val/loss``, that of the first
    average.

    On the same images, times and noise, so the curves compare. Each costs a validation. Nothing without averages.
    """

    @torch.no_grad()
    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        ema = find_ema(trainer)
        if ema is None or trainer.state.fn != "fit":
            return
        limit = trainer.num_val_batches[0]
        for name in [RAW, *ema.names[1:]]:
            total = torch.zeros(2, device=pl_module.device)
            pl_module.validated_images = 0
            with averaged(trainer, pl_module, name), trainer.precision_plugin.val_step_context():
                for batch in islice(trainer.val_dataloaders, int(limit)):
                    moved = trainer.strategy.batch_to_device(batch)
                    for losses in pl_module.held_out_losses(moved):
                        total += torch.stack([losses.sum(), torch.full_like(losses[0], len(losses))])
            total = trainer.strategy.reduce(total, reduce_op="sum")
            pl_module.log(f"val/loss_{name}", total[0] / total[1], sync_dist=True)
