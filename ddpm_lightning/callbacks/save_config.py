"""The run's configuration inside its checkpoints."""

from typing import Any

import lightning as L


class SaveConfig(L.Callback):
    """Puts a plain dictionary, which ``weights_only=True`` can load, under ``checkpoint["config"]``."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["config"] = self.config
