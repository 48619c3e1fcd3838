"""A small-sample Frechet distance, while the model trains."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from ddpm_lightning.callbacks.ema import averaged
from ddpm_lightning.callbacks.last_checkpoint import is_due, stop_requested
from ddpm_lightning.diffusion.samplers.base import Sampler
from ddpm_lightning.generation import BLOCK, generate
from ddpm_lightning.images import to_uint8

if TYPE_CHECKING:  # slow to import, for a figure that is off by default
    from torchmetrics.image.fid import FrechetInceptionDistance

    from ddpm_lightning.data.base import ImageDataModule
    from ddpm_lightning.evaluation.features import Features

KEY = "val/fid"

say = rank_zero_only(print)


class _Stopping(Exception):
    """The run was asked to stop, which matters more than a figure."""


class FrechetDistance(L.Callback):
    """Logs ``val/fid``, of ``num_samples`` images to the training split, every N steps or epochs.

    The images are those of the seeds ``seed``, ``seed`` + 1, ... by the first average, without guidance, rounded to
    uint8, their labels the classes in turn: the ones that an evaluation with the same settings makes. ``features`` is
    the extractor, None for the one that suits the set. Several devices share out the seeds and the training images.
    So few samples bias the distance upwards: it compares with nothing but itself.
    """

    def __init__(
        self,
        sampler: Sampler,
        num_samples: int,
        batch_size: int,
        every_n_train_steps: int | None = None,
        every_n_epochs: int | None = None,
        features: Features | None = None,
        seed: int = 0,
    ) -> None:
        for name, value, least in (("num_samples", num_samples, 2), ("batch_size", batch_size, 1), ("seed", seed, 0)):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        for name, interval in (("every_n_train_steps", every_n_train_steps), ("every_n_epochs", every_n_epochs)):
            if interval is not None and not (type(interval) is int and interval >= 1):
                raise ValueError(f"{name} must be an integer of at least 1, or null for none, got {interval}")
        self.sampler = sampler
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.every_n_train_steps = every_n_train_steps
        self.every_n_epochs = every_n_epochs
        self.features = features
        self.seed = seed
        self.step = 0
        self.measured_at = 0
        self.metric: FrechetInceptionDistance | None = None

    @property
    def is_active(self) -> bool:
        return self.every_n_train_steps is not None or self.every_n_epochs is not None

    def prepare(self, data: ImageDataModule) -> None:
        """Make the extractor and let it learn: before a run starts, as its weights may be missing."""
        if self.features is None:
            from ddpm_lightning.evaluation.suited import suited  # imports scikit-learn

            self.features = suited(data.image_shape)
        self.features.fit(*data.split("train"))

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.step = trainer.global_step
        if self.is_active:
            say(f"{KEY} is of {self.num_samples} samples, which bias it upwards: compare it with itself alone")

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        step = trainer.global_step
        if step == self.step:  # a batch that was accumulated, without an optimizer step
            return
        self.step = step
        if not is_due(trainer, self.every_n_train_steps, self.every_n_epochs):
            return
        try:
            distance = self.measure(trainer, pl_module)
        except _Stopping:
            return
        self.measured_at = step
        pl_module.log(KEY, distance, prog_bar=True, logger=False)  # Lightning logs every log_every_n_steps alone
        for logger in trainer.loggers:
            logger.log_metrics({KEY: float(distance)}, step - 1)  # loggers count from 0

    def measure(self, trainer: Any, pl_module: Any) -> Tensor:
        """The distance, the same on each rank. Raises _Stopping on all if one was told to stop."""
        metric = self._with_training_split(trainer, pl_module)
        metric.reset()
        was_training = pl_module.training
        pl_module.eval()
        try:
            for images in self._samples(trainer, pl_module):
                metric.update(images.to(metric.device), real=False)
        finally:
            pl_module.train(was_training)
        return metric.compute()  # of all ranks' sums

    def _with_training_split(self, trainer: Any, pl_module: Any) -> FrechetInceptionDistance:
        """The metric with this rank's share of the training images, looked at once."""
        if self.metric is None:
            from torchmetrics.image.fid import FrechetInceptionDistance

            device = pl_module.device if pl_module.device.type != "mps" else torch.device("cpu")  # it has no float64
            shape = trainer.datamodule.image_shape
            extractor = _Extractor(self.features, device)
            metric = FrechetInceptionDistance(extractor, reset_real_features=False, input_img_size=shape).to(device)
            images = trainer.datamodule.split("train").images
            for share in _shares(trainer, range(len(images)), self.batch_size):
                if share:
                    metric.update(images[share.start : share.stop : share.step].to(device), real=True)
                _stop_together(trainer)
            self.metric = metric
        return self.metric

    def _samples(self, trainer: Any, pl_module: Any) -> Iterator[Tensor]:
        """This rank's images, uint8, in batches."""
        device, shape, num_classes = pl_module.device, pl_module.denoiser.image_shape, pl_module.num_classes

        def watch(images: int) -> None:
            if stop_requested(trainer):
                raise _Stopping

        for share in _shares(trainer, range(self.num_samples), self.batch_size):
            seeds = [self.seed + i for i in share]
            labels = None if num_classes is None else [seed % num_classes for seed in seeds]
            arguments = (seeds, labels, self.batch_size, device, watch, BLOCK if device.type == "cpu" else 1)
            images: list[Tensor] = []
            try:
                with averaged(trainer, pl_module), trainer.precision_plugin.forward_context():
                    images = list(generate(pl_module.denoiser, self.sampler, shape, *arguments))
            except _Stopping:
                pass
            _stop_together(trainer)
            yield from map(to_uint8, images)


def _shares(trainer: Any, indices: range, batch_size: int) -> Iterator[range]:
    """This rank's indices in batches; on all ranks as many, of which the last may be empty."""
    rank, world = trainer.global_rank, trainer.world_size
    for start in range(0, len(indices), batch_size * world):
        yield indices[start + rank : start + batch_size * world : world]


def _stop_together(trainer: Any) -> None:
    """Ranks hear of a signal at different times, and would wait for each other for ever."""
    if trainer.strategy.reduce_boolean_decision(stop_requested(trainer), all=False):
        raise _Stopping


class _Extractor(torch.nn.Module):
    """Features as torchmetrics takes them; kept by no module that is trained or saved."""

    def __init__(self, features: Any, device: torch.device) -> None:
        super().__init__()
        features.to(device)
        self.features = features

    def forward(self, images: Tensor) -> Tensor:
        return self.features(images.cpu()).features.to(images.device)


def is_new(trainer: Any) -> bool:
    """Whether ``val/fid`` is of this step."""
    return any(isinstance(c, FrechetDistance) and c.measured_at == trainer.global_step for c in trainer.callbacks)
