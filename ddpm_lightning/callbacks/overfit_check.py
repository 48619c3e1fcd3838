"""Whether a run that trains on one batch has learned it by heart."""

import math
from typing import Any

import lightning as L
import torch

from ddpm_lightning.callbacks.ema import averaged
from ddpm_lightning.diffusion.samplers.base import Sampler
from ddpm_lightning.generation import generate

MATCHING_SHARE = 0.9  # of the samples


class OverfitCheck(L.Callback):
    """At the end of training, ``failures`` says in words what is wrong: nothing, if the batch is learned.

    That is, if the loss at the 40 fixed times is below ``max_loss``, and of nine in ten samples the root mean square
    difference from the nearest image of the batch is below ``max_distance``, in units of [-1, 1].
    """

    def __init__(self, sampler: Sampler, max_loss: float = 0.02, max_distance: float = 0.2) -> None:
        self.sampler = sampler
        self.max_loss = max_loss
        self.max_distance = max_distance
        self.matching = self.num_samples = 0
        self.failures: list[str] = []

    @torch.no_grad()
    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        pl_module.eval()
        pl_module.validated_images = 0
        shape, device = pl_module.denoiser.image_shape, pl_module.device
        images, samples, losses = [], [], []
        with averaged(trainer, pl_module), trainer.precision_plugin.forward_context():
            for batch in trainer.datamodule.val_dataloader():
                here = trainer.strategy.batch_to_device(batch)
                losses += list(pl_module.held_out_losses(here))
                labels = None if pl_module.num_classes is None else batch[1].tolist()
                seeds = range(len(batch[0]))
                samples += list(generate(pl_module.denoiser, self.sampler, shape, seeds, labels, device=device))
                images.append(here[0])
        pl_module.train()
        loss = torch.cat(losses).mean().item()
        apart = torch.cdist(torch.cat(samples).flatten(1), torch.cat(images).flatten(1)).amin(1)
        distance = apart / math.prod(shape) ** 0.5
        self.num_samples, self.matching = len(distance), int((distance < self.max_distance).sum())
        if not loss < self.max_loss:
            self.failures.append(f"the loss is {loss:.4f}, not below {self.max_loss}")
        if self.matching < MATCHING_SHARE * self.num_samples:
            self.failures.append(f"only {self.matching} of {self.num_samples} samples match an image of the batch")
