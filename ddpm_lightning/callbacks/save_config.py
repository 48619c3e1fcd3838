"""The run's configuration inside its checkpoints, and what the weights have cost so far."""

from time import monotonic
from typing import Any

import lightning as L


class SaveConfig(L.Callback):
    """Puts a plain dictionary, which ``weights_only=True`` can load, under ``checkpoint["config"]``.

    And the names of the classes, or None, under ``checkpoint["class_names"]``; how many images the weights have seen,
    over all devices, under ``checkpoint["images_seen"]``; and under ``checkpoint["train_seconds"]`` how long they
    were trained, validation and sample grids included, over all starts of the run: not what a kill threw away, and
    None if the run began before this was counted.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.seconds_before: float | None = 0.0  # of the starts before this one
        self.started: float | None = None

    @property
    def train_seconds(self) -> float | None:
        """Up to now."""
        if self.seconds_before is None or self.started is None:
            return self.seconds_before
        return self.seconds_before + monotonic() - self.started

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.started = monotonic()

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self.seconds_before = checkpoint.get("train_seconds")

    def on_save_checkpoint(self, trainer: Any, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        batch = trainer.datamodule.batch_size * trainer.world_size * trainer.accumulate_grad_batches
        checkpoint["config"] = self.config
        checkpoint["class_names"] = trainer.datamodule.class_names
        checkpoint["images_seen"] = trainer.global_step * batch
        checkpoint["train_seconds"] = self.train_seconds
