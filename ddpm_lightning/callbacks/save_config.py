"""The run's configuration inside its checkpoints."""

from typing import Any

import lightning as L


class SaveConfig(L.Callback):
    """Puts a plain dictionary, which ``weights_only=True`` can load, under ``checkpoint["config"]``.

    And how many images the weights have seen, over all devices, under ``checkpoint["images_seen"]``.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config

    def on_save_checkpoint(self, trainer: Any, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        batch = trainer.datamodule.batch_size * trainer.world_size * trainer.accumulate_grad_batches
        checkpoint["config"] = self.config
        checkpoint["images_seen"] = trainer.global_step * batch
