"""Pictures of what the model makes, while it trains."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from ddpm_lightning.callbacks.ema import averaged, find_ema
from ddpm_lightning.callbacks.last_checkpoint import is_due, stop_requested
from ddpm_lightning.checkpoint import RAW
from ddpm_lightning.diffusion.guidance import GuidedDenoiser, X0Estimator
from ddpm_lightning.diffusion.samplers.base import Sampler
from ddpm_lightning.generation import film, generate
from ddpm_lightning.images import grid, save_png, to_uint8
from ddpm_lightning.module import DiffusionModule

STRIP_STAGES = 8  # states of a run of the sampler that its strip shows, noise and image included


class _Stopping(Exception):
    """The run was asked to stop, which matters more than a picture."""


def _watch(trainer: Any) -> Callable[[int], None]:
    def stop_if_asked(images: int) -> None:
        if stop_requested(trainer):
            raise _Stopping

    return stop_if_asked


class SampleGrid(L.Callback):
    """Draws ``num_images`` with the averaged weights, every N steps or epochs and at the end of training.

    Their seeds are ``seed``, ``seed`` + 1, ..., so that pictures of different steps compare image by image. A
    conditional model's rows go through the classes in order. Written to ``dirpath`` as ``step-NNNNNNN.png``, and
    shown in TensorBoard and W&B as ``samples``; those of further averages as ``step-NNNNNNN-<decay>.png``. With
    ``strip``, the way from noise to the first ``strip`` images is in ``denoising/``.
    """

    def __init__(
        self,
        sampler: Sampler,
        dirpath: str,
        num_images: int,
        columns: int,
        every_n_train_steps: int | None,
        every_n_epochs: int | None = None,
        guidance: float = 0.0,
        seed: int = 0,
        strip: int = 0,
    ) -> None:
        least = {"num_images": 1, "columns": 1, "every_n_train_steps": 1, "every_n_epochs": 1, "strip": 0}
        given = (num_images, columns, every_n_train_steps, every_n_epochs, strip)
        for (name, smallest), value in zip(least.items(), given, strict=True):
            if value is not None and value < smallest:
                raise ValueError(f"{name} must be at least {smallest}, got {value}")
        self.sampler = sampler
        self.dirpath = Path(dirpath)
        self.num_images = num_images
        self.columns = columns
        self.every_n_train_steps = every_n_train_steps
        self.every_n_epochs = every_n_epochs
        self.guidance = guidance
        self.seed = seed
        self.strip = min(strip, num_images)
        self.drawn_at = 0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if is_due(trainer, self.every_n_train_steps, self.every_n_epochs):
            self.draw(trainer, pl_module)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.draw(trainer, pl_module)

    def path_of(self, step: int) -> Path:
        return self.dirpath / f"step-{step:07d}.png"

    @rank_zero_only
    def draw(self, trainer: Any, pl_module: DiffusionModule) -> None:
        """Draw the grids of this step, once."""
        step, ema = trainer.global_step, find_ema(trainer)
        if step in (0, self.drawn_at):
            return
        was_training = pl_module.training
        pl_module.eval()
        try:
            for name in ema.names if ema else [RAW]:
                with averaged(trainer, pl_module, name), trainer.precision_plugin.forward_context():
                    picture, strip = self._pictures(trainer, pl_module)
                first = self.drawn_at != step
                self.drawn_at = step
                path = self.path_of(step) if first else self.path_of(step).with_stem(f"step-{step:07d}-{name}")
                save_png(picture, path)
                show(trainer, "samples" if first else f"samples_{name}", picture, step)
                if first and strip is not None:
                    save_png(strip, self.dirpath / "denoising" / path.name)
                    show(trainer, "denoising", strip, step)
        except _Stopping:
            return
        finally:
            pl_module.train(was_training)

    def _pictures(self, trainer: Any, pl_module: DiffusionModule) -> tuple[Tensor, Tensor | None]:
        """The grid, and the strip or None."""
        denoiser: X0Estimator = pl_module.denoiser
        labels, captions = None, None
        if pl_module.num_classes is not None:
            labels = [i % self.columns % pl_module.num_classes for i in range(self.num_images)]
            names = trainer.datamodule.class_names
            captions = [names[label] for label in labels] if names else None
            if self.guidance:
                denoiser = GuidedDenoiser(denoiser, self.guidance, null_label=pl_module.num_classes)
        seeds, shape = range(self.seed, self.seed + self.num_images), pl_module.denoiser.image_shape
        device, watch = pl_module.device, _watch(trainer)
        images = generate(denoiser, self.sampler, shape, seeds, labels, device=device, on_move=watch)
        picture = grid(to_uint8(torch.cat(list(images))), self.columns, captions)
        if not self.strip:
            return picture, None
        first = None if labels is None else labels[: self.strip]
        way = film(denoiser, self.sampler, shape, seeds[: self.strip], first, device, watch)
        states = [x for _, x, _ in way]
        shown = [round(i * (len(states) - 1) / (STRIP_STAGES - 1)) for i in range(STRIP_STAGES)]
        rows = torch.stack([states[i] for i in shown], dim=1)  # (images, stages, C, H, W)
        return picture, grid(to_uint8(rows.flatten(0, 1)), STRIP_STAGES)


def show(trainer: Any, name: str, picture: Tensor, step: int) -> None:
    """Give a picture (3, H, W) uint8 to the loggers that take any."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(name, picture, step)
        elif isinstance(logger, WandbLogger):
            logger.log_image(name, [picture.permute(1, 2, 0).cpu().numpy()], step)
