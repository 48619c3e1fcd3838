"""Exponential moving averages of the weights."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import lightning as L
import torch
from torch import Tensor

from ddpm_lightning.checkpoint import RAW


class EMA(L.Callback):
    """Averages the denoiser's weights over the optimizer steps, and puts an average in place for validation.

    ``decay`` is one or several; each average is known by its decay's text, such as "0.999", and the first is the one
    that validates. Until ``start_step`` an average is a copy of the weights. From then on, at its n-th update (n = 0,
    1, ...), it moves towards them by 1 - decay, where with ``warmup`` the decay is at most (1 + n) / (10 + n): so
    that short runs too forget where they began.

    The averages are in float32 or the weights' own precision, and travel as ``checkpoint["ema"]``: ``{"step",
    "num_updates", "averages": {decay: {name: tensor}}}``; the weights themselves stay in ``state_dict``.
    (Lightning's EMAWeightAveraging ends a run before its start step with untrained weights, averages buffers,
    and has no warm-up.)
    """

    def __init__(self, decay: float | Sequence[float] = 0.9999, start_step: int = 0, warmup: bool = True) -> None:
        decays = list(decay) if isinstance(decay, Sequence) else [decay]
        if not decays or any(not 0 <= d < 1 for d in decays) or len(set(decays)) < len(decays):
            raise ValueError(f"decay must lie in [0, 1), or be a list of different such, got {decay}")
        if start_step < 0:
            raise ValueError(f"start_step must be at least 0, got {start_step}")
        self.decays = {str(d): float(d) for d in decays}
        self.start_step = start_step
        self.warmup = warmup
        self.step = 0
        self.num_updates = 0
        self.averages: dict[str, dict[str, Tensor]] = {}
        self.weights: list[Tensor] = []  # of the module that is trained, in the averages' order
        self.in_place = RAW

    @property
    def names(self) -> list[str]:
        """Of the averages, the one that validates first."""
        return list(self.decays)

    def decay_at(self, n: int, decay: float) -> float:
        """The decay of the n-th update."""
        return min(decay, (1 + n) / (10 + n)) if self.warmup else decay

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        weights = self._weights(pl_module)
        self.weights = list(weights.values())
        # loaded averages come on the CPU
        self.averages = {
            name: {
                key: self.averages.get(name, weights)[key].detach().clone().to(weight.device)
                for key, weight in weights.items()
            }
            for name in self.names
        }

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # again, for strategies that replace them; and once, as the walk takes longer than the update of a small network
        self.weights = list(self._weights(pl_module).values())

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step <= self.step:  # a batch that was accumulated, without an optimizer step
            return
        self.step = trainer.global_step
        for name, decay in self.decays.items():
            average = list(self.averages[name].values())
            if self.step <= self.start_step:
                torch._foreach_copy_(average, self.weights)
            else:
                torch._foreach_lerp_(average, self.weights, 1 - self.decay_at(self.num_updates, decay))
        self.num_updates += self.step > self.start_step

    @contextmanager
    def applied(self, pl_module: L.LightningModule, name: str | None = None) -> Iterator[None]:
        """An average in the module's place, for the length of a with block: by default the first; "raw" for none."""
        before = self.in_place
        self._put(pl_module, name or self.names[0])
        try:
            yield
        finally:
            self._put(pl_module, before)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == "fit":
            self._put(pl_module, self.names[0])

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == "fit":
            self._put(pl_module, RAW)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._put(pl_module, RAW)

    def _put(self, pl_module: L.LightningModule, name: str) -> None:
        """Put an average, or the module's own weights, in its place."""
        if name == self.in_place or not self.averages:
            return
        if self.in_place != RAW:
            self._exchange(pl_module, self.in_place)
            self.in_place = RAW
        if name != RAW:
            self._exchange(pl_module, name)
            self.in_place = name

    @torch.no_grad()
    def _exchange(self, pl_module: L.LightningModule, name: str) -> None:
        """Exchange the values of weights and averages; addresses stay, for optimizers."""
        weights, averages = list(self._weights(pl_module).values()), list(self.averages[name].values())
        kept = [weight.clone() for weight in weights]
        torch._foreach_copy_(weights, averages)
        torch._foreach_copy_(averages, kept)

    @staticmethod
    def _weights(pl_module: Any) -> dict[str, Tensor]:
        return dict(pl_module.denoiser.named_parameters())

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if self.in_place != RAW:
            raise RuntimeError("no checkpoint can be written while the averaged weights are in the module's place")
        averages = {name: dict(average) for name, average in self.averages.items()}
        checkpoint["ema"] = {"step": self.step, "num_updates": self.num_updates, "averages": averages}

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if "ema" in checkpoint:
            state = checkpoint["ema"]
            self.step, self.num_updates, self.averages = state["step"], state["num_updates"], state["averages"]


def find_ema(trainer: Any) -> EMA | None:
    """The run's averages, if it keeps any."""
    return next((callback for callback in trainer.callbacks if isinstance(callback, EMA)), None)


def averaged(trainer: Any, pl_module: L.LightningModule, name: str | None = None) -> AbstractContextManager[None]:
    """A context in which the module has its averaged weights, or its own if the run keeps no averages."""
    ema = find_ema(trainer)
    return nullcontext() if ema is None else ema.applied(pl_module, name)
