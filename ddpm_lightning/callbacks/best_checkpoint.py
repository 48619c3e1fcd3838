"""The checkpoint with the best figure."""

from typing import Any

from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from ddpm_lightning.callbacks.frechet import KEY, is_new


class BestCheckpoint(ModelCheckpoint):
    """Keeps the best by a figure of a validation, or by ``val/fid``: judged when it's measured, and never by an old
    one.

    (Lightning's own judges at validations alone, by what was logged last.)
    """

    @property
    def state_key(self) -> str:
        # under Lightning's name, by which runs of older versions know it
        return super().state_key.replace(type(self).__qualname__, ModelCheckpoint.__qualname__, 1)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        # a resumed run does not repeat a validation that was due: so it must be over, and the file be of its end
        due = trainer.fit_loop.epoch_loop._should_check_val_fx(trainer.fit_loop._data_fetcher)
        if self.monitor == KEY and not due and not self._should_skip_saving_checkpoint(trainer):
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))

    def _save_topk_checkpoint(self, trainer: Any, monitor_candidates: dict[str, Tensor]) -> None:
        if self.monitor != KEY or is_new(trainer):
            super()._save_topk_checkpoint(trainer, monitor_candidates)
