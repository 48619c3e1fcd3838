"""What to do when the loss is not a number."""

from typing import Any

import lightning as L
import torch
from torch import Tensor

from ddpm_lightning.callbacks.loss_by_time import QUARTERS, quarter_of
from ddpm_lightning.module import has_scaler

ON_NAN = ("stop", "skip")
MOST_SKIPPED = 10  # in a row, before a run counts as lost


class NotFinite(Exception):
    """A run whose loss or gradient is not finite. One line."""


class NonFinite(L.Callback):
    """``on_nan`` "stop" ends the run at a loss or gradient that is not finite, before any checkpoint is written.

    "skip" leaves out the optimizer step instead, up to ten in a row, which reads the gradient's norm at each step; with
    16-mixed precision the scaler does so itself, without a word. On a GPU, "stop" looks when the loggers are due and
    before each checkpoint, so that no step waits for the host.
    """

    def __init__(self, on_nan: str = "stop") -> None:
        if on_nan not in ON_NAN:
            raise ValueError(f"on_nan must be one of {', '.join(ON_NAN)}, got {on_nan}")
        self.on_nan = on_nan
        self.skipped = 0  # in a row
        # how many losses were not finite, by quarter of T; how many gradients; and the first such step
        self.bad: Tensor | None = None

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: torch.optim.Optimizer) -> None:
        if self.on_nan == "stop" or has_scaler(trainer):
            return
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        if torch.nn.utils.get_total_norm(gradients).isfinite():  # the same on all ranks
            self.skipped = 0
            return
        self.skipped += 1
        step = trainer.global_step + 1
        if self.skipped == MOST_SKIPPED:
            raise NotFinite(f"stopped at step {step}: {MOST_SKIPPED} steps in a row had no finite gradient")
        if trainer.is_global_zero:
            print(f"\nstep {step} is left out: its gradient is not finite")
        optimizer.zero_grad(set_to_none=True)  # without gradients the optimizer does nothing

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.on_nan == "skip":
            return
        losses, t = outputs["losses"], outputs["t"]
        if self.bad is None:
            self.bad = torch.zeros(QUARTERS + 2, dtype=torch.int64, device=losses.device)
        found = torch.zeros_like(self.bad)
        found.index_add_(0, quarter_of(t, pl_module), (~losses.isfinite()).long())
        if not has_scaler(trainer):
            found[QUARTERS] = ~pl_module.grad_norm.isfinite()
        stepped = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        step = trainer.global_step + (0 if stepped else 1)
        found[QUARTERS + 1] = torch.where(found.sum() > 0, step, 0)
        self.bad += torch.where(self.bad[-1] == 0, found, 0)  # the first such step; what follows tells nothing more
        if losses.device.type == "cpu" or trainer.global_step % trainer.log_every_n_steps == 0:
            self.look(trainer)

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        self.look(trainer)

    def look(self, trainer: Any) -> None:
        """Raise NotFinite if anything has been found."""
        if self.bad is None:
            return
        # ranks must stop together, whichever has seen it
        *quarters, gradients = trainer.strategy.reduce(self.bad[:-1].clone(), reduce_op="sum").tolist()
        if not any(quarters) and not gradients:
            return
        step = int(self.bad[-1])
        where = ", ".join(str(q) for q, count in enumerate(quarters, start=1) if count)
        what = f"the loss is not finite, in quarter {where} of T" if where else "the gradient is not finite"
        raise NotFinite(f"stopped at step {step or trainer.global_step}: {what}")
