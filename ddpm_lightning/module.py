"""What a training step is, and what a validation step is."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor
from torchmetrics import MeanMetric

from ddpm_lightning.diffusion.denoiser import Denoiser
from ddpm_lightning.diffusion.distance import MSE
from ddpm_lightning.diffusion.loss import Term, attempt, denoising_loss
from ddpm_lightning.diffusion.noise import PerImageNoise
from ddpm_lightning.diffusion.timesteps import Timesteps
from ddpm_lightning.diffusion.weighting import Uniform
from ddpm_lightning.lr_schedules import LRSchedule

HELD_OUT_TIMES = 40
COMPILE_MODES = ("default", "reduce-overhead", "max-autotune")

Batch = tuple[Tensor, Tensor]


class DiffusionModule(L.LightningModule):
    """Trains a denoiser; its batches are (images (B, C, H, W) in [-1, 1], labels (B,)).

    The loss is the sum of the ``objective``'s terms. ``optimizer`` and ``lr_schedule`` give what their names say, the
    first from the parameters. With a conditional net each label is dropped with probability ``label_drop``, Ho &
    Salimans (2022), algorithm 1. ``offset_noise``: standard deviation of a further noise that is the same for all
    pixels of a channel, Guttenberg (2023). ``input_perturbation``: standard deviation of noise that the network sees
    but is not to predict, Ning et al. (2023), who take .1. ``val_times``: at how many of the 40 times each held-out
    image is tried. ``compile`` and ``compile_mode``: whether and how torch.compile is to compile the network. All
    randomness of a training step is keyed by (seed, batches so far, rank): so ranks differ, and a resumed run repeats
    nothing.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        objective: Mapping[str, Term],
        timesteps: Timesteps,
        optimizer: Callable[[Iterable[torch.nn.Parameter]], torch.optim.Optimizer],
        lr_schedule: LRSchedule,
        label_drop: float = 0.1,
        offset_noise: float = 0.0,
        input_perturbation: float = 0.0,
        val_times: int = 1,
        seed: int = 0,
        compile: bool = False,
        compile_mode: str = "default",
    ) -> None:
        super().__init__()
        if not 0 <= label_drop <= 1:
            raise ValueError(f"label_drop must lie in [0, 1], got {label_drop}")
        for name, value in (("offset_noise", offset_noise), ("input_perturbation", input_perturbation)):
            if value < 0:
                raise ValueError(f"{name} must be at least 0, got {value}")
        if not objective:
            raise ValueError("objective must have at least one term, got none")
        if not 1 <= val_times <= HELD_OUT_TIMES:
            raise ValueError(f"val_times must lie in [1, {HELD_OUT_TIMES}], got {val_times}")
        if not 0 <= seed < 2**63:
            raise ValueError(f"seed must lie in [0, 2^63), got {seed}")
        self.denoiser = denoiser
        self.objective = torch.nn.ModuleDict(objective)
        self.timesteps = timesteps
        self.optimizer = optimizer
        self.lr_schedule = lr_schedule
        self.label_drop = label_drop
        self.offset_noise = offset_noise
        self.input_perturbation = input_perturbation
        self.val_times = val_times
        self.seed = seed
        self.val_loss = MeanMetric()
        self.grad_norm = torch.zeros(())  # of the newest optimizer step, before clipping
        self.validated_images = 0
        self.validated_at: int | None = None  # the optimizer step of the newest held-out loss
        if compile_mode not in COMPILE_MODES:
            raise ValueError(f"compile_mode must be one of {', '.join(COMPILE_MODES)}, got {compile_mode}")
        if compile:
            self.denoiser.net.compile(fullgraph=True, mode=compile_mode)  # in place, so that no weight is renamed

    @property
    def num_classes(self) -> int | None:
        """Of the network; None if it takes no labels. Also the index of its null class."""
        return getattr(self.denoiser.net, "num_classes", None)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        key = (0, self.seed, self.trainer.fit_loop.total_batch_idx, self.global_rank)
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]))

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        images, labels = batch
        t, weight = self.timesteps(len(images), self.denoiser.schedule.num_steps, images.device)
        noise, perturbation = self._noise(images)
        trial = attempt(self.denoiser, images, t, noise, self._drop(labels), perturbation)
        terms = {name: term(self.denoiser, trial) for name, term in self.objective.items()}
        losses = torch.stack(list(terms.values())).sum(0)
        loss = (weight * losses).mean()
        self.timesteps.update(t, losses.detach())
        self.log("train/loss", loss, prog_bar=True)
        if len(terms) > 1:
            self.log_dict({f"train/{name}": (weight * term).mean() for name, term in terms.items()})
        return {"loss": loss, "losses": losses.detach(), "t": t, "weight": weight}

    def _noise(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """What is to be predicted, and what is added to it unseen: each like the images."""
        noise = torch.randn_like(images)
        if self.offset_noise:
            noise = noise + self.offset_noise * torch.randn_like(images[:, :, :1, :1])
        return noise, self.input_perturbation * torch.randn_like(images) if self.input_perturbation else None

    def _drop(self, labels: Tensor) -> Tensor | None:
        """Labels (B,), some replaced by the null class; None for a network without labels."""
        if self.num_classes is None:
            return None
        dropped = torch.rand(labels.shape, device=labels.device) < self.label_drop
        return labels.masked_fill(dropped, self.num_classes)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """The held-out loss: mean squared noise error at fixed times, spread evenly over 0..T, with fixed noise."""
        for losses in self.held_out_losses(batch):
            self.val_loss.update(losses)
        self.log("val/loss", self.val_loss, prog_bar=True)

    def held_out_losses(self, batch: Batch) -> Iterable[Tensor]:
        """The held-out loss of each image of the next batch, (B,), at each of its times; batches must come in order."""
        images, labels = batch
        T = self.denoiser.schedule.num_steps
        label = None if self.num_classes is None else labels
        # where the images stand in the set, however it is cut into batches and shared out: ranks take turns
        first, world = self.validated_images, self.trainer.world_size
        index = [(first + i) * world + self.global_rank for i in range(len(images))]
        self.validated_images += len(images)
        for k in range(self.val_times):
            place = (torch.tensor(index) + k * HELD_OUT_TIMES // self.val_times) % HELD_OUT_TIMES
            t = (((2 * place + 1) * T).div(2 * HELD_OUT_TIMES, rounding_mode="floor") + 1).to(images.device)
            noise = PerImageNoise([HELD_OUT_TIMES * i + k for i in index], images.device).randn_like(images)
            yield denoising_loss(self.denoiser, Uniform(), MSE(), images, t, noise, label)

    def on_validation_epoch_start(self) -> None:
        self.validated_images = 0

    def on_validation_epoch_end(self) -> None:
        self.validated_at = self.global_step

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self.parameters())
        total = self.total_steps
        # a plain function: of a callable object LambdaLR would save the settings, and a resumed run get the old ones
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.lr_schedule(step, total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    @property
    def total_steps(self) -> int | None:
        """Optimizer steps of the whole run, resumed or not; None if it has no end, or there is no trainer."""
        return None if self._trainer is None else total_steps(self._trainer)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        # not self.parameters(), which walks through all modules: that takes longer than the norm of a small network
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        scaled = has_scaler(self.trainer)
        if not (scaled and optimizer.param_groups[0].get("fused")):  # which unscales within its step
            self.grad_norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
            self.log("train/grad_norm", self.grad_norm)
        if gradient_clip_val is None or scaled:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
            return
        # Lightning refuses to clip for fused optimizers in any mixed precision; without a scaler it is safe
        if gradient_clip_algorithm == "value":
            torch.nn.utils.clip_grad_value_(parameters, gradient_clip_val)
        else:
            torch.nn.utils.clip_grads_with_norm_(parameters, gradient_clip_val, self.grad_norm)


def has_scaler(trainer: Any) -> bool:
    """Whether a gradient scaler finds gradients that aren't finite, leaves out their steps, and scales less after."""
    plugin = trainer.precision_plugin
    return isinstance(plugin, MixedPrecision) and plugin.scaler is not None


def total_steps(trainer: Any) -> int | None:
    """Optimizer steps of a run, by ``max_steps`` or ``max_epochs``, whichever ends first; None if neither does.

    (Lightning's own estimate makes it forget, if asked before a resumed run, where in the epoch it was.)
    """
    limits = []
    if trainer.max_steps > 0:
        limits.append(trainer.max_steps)
    if trainer.max_epochs is not None and trainer.max_epochs > 0:
        batches = trainer.datamodule.num_batches
        limit = trainer.limit_train_batches
        batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
        limits.append(trainer.max_epochs * -(-batches // trainer.accumulate_grad_batches))
    return min(limits, default=None)
