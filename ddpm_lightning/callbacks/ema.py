"""Exponential moving average of the weights."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import lightning as L
import torch
from torch import Tensor


class EMA(L.Callback):
    """Averages the denoiser's weights over the optimizer steps, and puts the averages in place for validation.

    Until ``start_step`` the average is a copy of the weights. From then on, at its n-th update (n = 0, 1, ...), it
    moves towards them by 1 - decay, where with ``warmup`` the decay is at most (1 + n) / (10 + n): so that short runs
    too forget where they began.

    The averages are in float32 or the weights' own precision, and travel as ``checkpoint["ema"]``:
    ``{"decay", "step", "num_updates", "weights": {name: tensor}}``; the weights themselves stay in ``state_dict``.
    (Lightning's EMAWeightAveraging ends a run before its start step with untrained weights, averages buffers,
    and has no warm-up.)
    """

    def __init__(self, decay: float = 0.9999, start_step: int = 0, warmup: bool = True) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay must lie in [0, 1), got {decay}")
        if start_step < 0:
            raise ValueError(f"start_step must be at least 0, got {start_step}")
        self.decay = decay
        self.start_step = start_step
        self.warmup = warmup
        self.step = 0
        self.num_updates = 0
        self.averages: dict[str, Tensor] = {}
        self.in_place = False

    def decay_at(self, n: int) -> float:
        """The decay of the n-th update."""
        return min(self.decay, (1 + n) / (10 + n)) if self.warmup else self.decay

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        weights = self._weights(pl_module)
        # loaded averages come on the CPU
        self.averages = {
            name: self.averages.get(name, weight).detach().clone().to(weight.device) for name, weight in weights.items()
        }

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step <= self.step:  # a batch that was accumulated, without an optimizer step
            return
        self.step = trainer.global_step
        averages, weights = list(self.averages.values()), list(self._weights(pl_module).values())
        if self.step <= self.start_step:
            torch._foreach_copy_(averages, weights)
            return
        torch._foreach_lerp_(averages, weights, 1 - self.decay_at(self.num_updates))
        self.num_updates += 1

    @contextmanager
    def applied(self, pl_module: L.LightningModule) -> Iterator[None]:
        """The averages in the module's place, for the length of a with block."""
        was_in_place = self.in_place
        self._put(pl_module, True)
        try:
            yield
        finally:
            self._put(pl_module, was_in_place)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == "fit":
            self._put(pl_module, True)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == "fit":
            self._put(pl_module, False)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._put(pl_module, False)

    @torch.no_grad()
    def _put(self, pl_module: L.LightningModule, in_place: bool) -> None:
        """Exchange the values of weights and averages, if it is not so already; addresses stay, for optimizers."""
        if in_place == self.in_place or not self.averages:
            return
        weights, averages = list(self._weights(pl_module).values()), list(self.averages.values())
        kept = [weight.clone() for weight in weights]
        torch._foreach_copy_(weights, averages)
        torch._foreach_copy_(averages, kept)
        self.in_place = in_place

    @staticmethod
    def _weights(pl_module: Any) -> dict[str, Tensor]:
        return dict(pl_module.denoiser.named_parameters())

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if self.in_place:
            raise RuntimeError("no checkpoint can be written while the averaged weights are in the module's place")
        checkpoint["ema"] = {
            "decay": self.decay,
            "step": self.step,
            "num_updates": self.num_updates,
            "weights": dict(self.averages),
        }

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if "ema" in checkpoint:
            state = checkpoint["ema"]
            self.step, self.num_updates, self.averages = state["step"], state["num_updates"], state["weights"]


def averaged(trainer: Any, pl_module: L.LightningModule) -> AbstractContextManager[None]:
    """A context in which the module has its averaged weights, or its own if the run keeps no averages."""
    for callback in trainer.callbacks:
        if isinstance(callback, EMA):
            return callback.applied(pl_module)
    return nullcontext()
