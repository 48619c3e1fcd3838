"""Whether a run that trains on one batch has learned it by heart."""

from typing import Any

import lightning as L
import torch
from torch import Tensor

from ddpm_lightning.callbacks.ema import averaged
from ddpm_lightning.diffusion.samplers.base import Sampler
from ddpm_lightning.generation import generate

MATCHING_SHARE = 0.9  # of the samples


class OverfitCheck(L.Callback):
    """At the end of training, ``loss``, the newest held-out loss, and ``distance``: of each sample the root mean square

    difference, in units of [-1, 1], from the nearest training image. ``failures`` says in words which of the two is too
    large: the loss not below ``max_loss``, or less than nine in ten samples nearer than ``max_distance``.
    """

    def __init__(self, sampler: Sampler, max_loss: float = 0.02, max_distance: float = 0.2) -> None:
        self.sampler = sampler
        self.max_loss = max_loss
        self.max_distance = max_distance
        self.loss = float("nan")
        self.distance: Tensor | None = None
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
        self.loss = float(trainer.callback_metrics["val/loss"])
        self.distance = torch.cdist(samples.flatten(1), images.cpu().flatten(1)).amin(1) / images[0].numel() ** 0.5
        matching = int((self.distance < self.max_distance).sum())
        if not self.loss < self.max_loss:
            self.failures.append(f"the loss is {self.loss:.4f}, not below {self.max_loss}")
        if matching < MATCHING_SHARE * len(samples):
            self.failures.append(f"only {matching} of {len(samples)} samples match an image of the batch")
