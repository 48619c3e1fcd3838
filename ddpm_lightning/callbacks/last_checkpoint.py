"""The checkpoint from which a run goes on, however it stopped."""

import os
import shutil
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(Exception):
    """A run was asked to stop, and has saved its state."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


def is_due(trainer: Any, every_n_train_steps: int | None, every_n_epochs: int | None) -> bool:
    """Whether something that comes every N steps or every N epochs, None for neither, comes after this batch."""
    by_step = every_n_train_steps is not None and trainer.global_step % every_n_train_steps == 0
    by_epoch = every_n_epochs is not None and (trainer.current_epoch + 1) % every_n_epochs == 0
    return by_step or (by_epoch and trainer.is_last_batch)


class LastCheckpoint(Checkpoint):
    """Writes ``last.ckpt`` every N optimizer steps or epochs, at the end of training, and on SIGTERM or Ctrl-C.

    What is written every N stays as ``step-NNNNNNN.ckpt`` too, the newest ``keep`` of these, -1 for all.

    After a signal the current optimizer step is finished first, accumulated batches included, and a validation that is
    due after it; then the state is saved, and ``Interrupted`` raised. A second Ctrl-C stops at once. (Lightning's own
    handling stops between accumulated batches, whose gradients would be lost, or in the middle of one.)

    A ``Checkpoint`` for Lightning, which calls those last: so the file holds this step's averaged weights.
    """

    def __init__(
        self, dirpath: str, every_n_train_steps: int | None, every_n_epochs: int | None = None, keep: int = 3
    ) -> None:
        for name, value in (("every_n_train_steps", every_n_train_steps), ("every_n_epochs", every_n_epochs)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if keep < -1:
            raise ValueError(f"keep must be at least 0, or -1 for all, got {keep}")
        self.path = Path(dirpath) / "last.ckpt"
        self.keep = keep
        self.every_n_train_steps = every_n_train_steps
        self.every_n_epochs = every_n_epochs
        self.step = 0
        self.due = self.stopping = self.stays = False
        self.received: int | None = None
        self.handlers: dict[int, Any] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.step = trainer.global_step
        if threading.current_thread() is threading.main_thread():
            self.handlers = {signum: signal.signal(signum, self._note) for signum in SIGNALS}

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self.received is not None and signum == signal.SIGINT:
            raise SystemExit(128 + signum)
        self.received = signum

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.step:  # a batch that was accumulated, without an optimizer step
            return
        self.step = trainer.global_step
        # ranks hear of a signal at different times, and must stop at the same step
        self.stopping = trainer.strategy.reduce_boolean_decision(self.received is not None, all=False)
        self.stays = is_due(trainer, self.every_n_train_steps, self.every_n_epochs)
        self.due = self.stopping or self.stays
        # a resumed run does not repeat a validation that was due: so it must be over, and its best score in the file
        if not trainer.fit_loop.epoch_loop._should_check_val_fx(trainer.fit_loop._data_fetcher):
            self._act(trainer)

    def on_validation_end(self, trainer: Any, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == "fit":
            self._act(trainer)

    def _act(self, trainer: L.Trainer) -> None:
        if self.due:
            self.due = False
            trainer.save_checkpoint(self.path)
            if self.stays and trainer.is_global_zero:
                self._keep()
            if self.stopping:
                raise Interrupted(self.received or signal.SIGTERM)

    def _keep(self) -> None:
        """Let last.ckpt stay under the step's name, and remove what is too old."""
        kept = self.path.with_name(f"step-{self.step:07d}.ckpt")
        if self.keep:
            kept.unlink(missing_ok=True)
            try:
                os.link(self.path, kept)  # no second copy on the disk: last.ckpt is replaced, not changed
            except OSError:  # on file systems without links
                shutil.copyfile(self.path, kept)
        if self.keep > 0:
            for old in sorted(self.path.parent.glob("step-*.ckpt"))[: -self.keep]:
                old.unlink()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        trainer.save_checkpoint(self.path)
        self._restore()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._restore()

    def _restore(self) -> None:
        for signum, handler in self.handlers.items():
            signal.signal(signum, handler)
        self.handlers = {}


def stop_requested(trainer: Any) -> bool:
    """Whether this process was told to stop, and is about to."""
    return any(isinstance(c, LastCheckpoint) and c.received is not None for c in trainer.callbacks)
