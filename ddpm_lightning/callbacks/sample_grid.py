"""Pictures of what the model makes, while it trains."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from ddpm_lightning.callbacks.ema import averaged
from ddpm_lightning.callbacks.last_checkpoint import stop_requested
from ddpm_lightning.diffusion.guidance import GuidedDenoiser, X0Estimator
from ddpm_lightning.diffusion.samplers.base import Sampler
from ddpm_lightning.generation import generate
from ddpm_lightning.images import grid, save_png, to_uint8
from ddpm_lightning.module import DiffusionModule


class _Stopping(Exception):
    """The run was asked to stop, which matters more than a picture."""


def _watch(trainer: Any) -> Callable[[int], None]:
    def stop_if_asked(images: int) -> None:
        if stop_requested(trainer):
            raise _Stopping

    return stop_if_asked


class SampleGrid(L.Callback):
    """Draws ``num_images`` with the averaged weights, every N steps and at the end of training.

    Their seeds are ``seed``, ``seed`` + 1, ..., so that pictures of different steps compare image by image. A
    conditional model's rows go through the classes in order. Written to ``dirpath`` as ``step-NNNNNNN.png``, and to
    TensorBoard as ``samples``.
    """

    def __init__(
        self,
        sampler: Sampler,
        dirpath: str,
        num_images: int,
        columns: int,
        every_n_train_steps: int,
        guidance: float = 0.0,
        seed: int = 0,
    ) -> None:
        for name, value in (
            ("num_images", num_images),
            ("columns", columns),
            ("every_n_train_steps", every_n_train_steps),
        ):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.sampler = sampler
        self.dirpath = Path(dirpath)
        self.num_images = num_images
        self.columns = columns
        self.every_n_train_steps = every_n_train_steps
        self.guidance = guidance
        self.seed = seed
        self.drawn_at = 0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step % self.every_n_train_steps == 0:
            self.draw(trainer, pl_module)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.draw(trainer, pl_module)

    def path_of(self, step: int) -> Path:
        return self.dirpath / f"step-{step:07d}.png"

    @rank_zero_only
    def draw(self, trainer: Any, pl_module: DiffusionModule) -> None:
        """Draw the grid of this step, once."""
        step = trainer.global_step
        if step in (0, self.drawn_at):
            return
        denoiser: X0Estimator = pl_module.denoiser
        labels = None
        if pl_module.num_classes is not None:
            labels = [i % self.columns % pl_module.num_classes for i in range(self.num_images)]
            if self.guidance:
                denoiser = GuidedDenoiser(denoiser, self.guidance, null_label=pl_module.num_classes)
        seeds, shape = range(self.seed, self.seed + self.num_images), pl_module.denoiser.image_shape
        was_training = pl_module.training
        pl_module.eval()
        try:
            with averaged(trainer, pl_module), trainer.precision_plugin.forward_context():
                batches = generate(
                    denoiser, self.sampler, shape, seeds, labels, device=pl_module.device, on_move=_watch(trainer)
                )
                picture = grid(to_uint8(torch.cat(list(batches))), self.columns)
        except _Stopping:
            return
        finally:
            pl_module.train(was_training)
        self.drawn_at = step
        save_png(picture, self.path_of(step))
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image("samples", picture, step)
