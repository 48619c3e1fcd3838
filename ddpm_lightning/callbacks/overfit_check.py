"""Whether a run that trains on one batch has learned it by heart."""

from typing import Any

import lightning as L
import torch

from ddpm_lightning.callbacks.ema import averaged
from ddpm_lightning.diffusion.samplers.base import Sampler
from ddpm_lightning.generation import generate

MATCHING_SHARE = 0.9  # of the samples


class OverfitCheck(L.Callback):
    """At the end of training, ``failures`` says in words what is wrong: nothing, if the batch is learned.

    That is, if the newest held-out loss is below ``max_loss``, and of nine in ten samples the root mean square
    difference from the nearest image of the batch is below ``max_distance``, in units of [-1, 1].
    """

    def __init__(self, sampler: Sampler, max_loss: float = 0.02, max_distance: float = 0.2) -> None:
        self.sampler = sampler
        self.max_loss = max_loss
        self.max_distance = max_distance
        self.matching = self.num_samples = 0
        self.failures: list[str] = []

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        images, labels = next(iter(trainer.val_dataloaders or trainer.datamodule.val_dataloader()))
        given = None if pl_module.num_classes is None else labels.tolist()
        pl_module.eval()
        with averaged(trainer, pl_module), trainer.precision_plugin.forward_context():
            batches = generate(
                pl_module.denoiser,
                self.sampler,
                images.shape[1:],
                range(len(images)),
                given,
                device=pl_module.device,
            )
            samples = torch.cat(list(batches)).cpu()
        pl_module.train()
        loss = float(trainer.callback_metrics["val/loss"])
        distance = torch.cdist(samples.flatten(1), images.cpu().flatten(1)).amin(1) / images[0].numel() ** 0.5
        self.num_samples, self.matching = len(samples), int((distance < self.max_distance).sum())
        if not loss < self.max_loss:
            self.failures.append(f"the loss is {loss:.4f}, not below {self.max_loss}")
        if self.matching < MATCHING_SHARE * self.num_samples:
            self.failures.append(f"only {self.matching} of {self.num_samples} samples match an image of the batch")
