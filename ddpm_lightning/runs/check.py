"""What Lightning or the parts alone would accept, and what would then fail late or silently."""

import os
from typing import Any

from omegaconf import DictConfig

from ddpm_lightning.callbacks.sample_grid import SampleGrid
from ddpm_lightning.data.base import ImageDataModule
from ddpm_lightning.diffusion.samplers.base import Sampler
from ddpm_lightning.diffusion.samplers.spacing import visited_times
from ddpm_lightning.diffusion.schedules.base import NoiseSchedule
from ddpm_lightning.module import DiffusionModule
from ddpm_lightning.runs.build import explain
from ddpm_lightning.runs.refusal import Refusal

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "64-true")


def check_values(cfg: DictConfig) -> None:
    """Refuse what Lightning would accept, and what would then fail late or silently."""
    precision, clip = str(cfg.trainer.precision), cfg.trainer.gradient_clip_val
    if precision not in PRECISIONS:  # half-precision weights would ruin the average and the schedule
        raise Refusal(f"trainer.precision={precision}: must be one of {', '.join(PRECISIONS)}")
    if clip is not None and not clip > 0:
        raise Refusal(f"trainer.gradient_clip_val={clip}: must be above 0, or null for no clipping")
    if precision == "16-mixed" and cfg.optimizer.get("fused") and clip:
        raise Refusal("optimizer.fused=true: must be false for clipping at trainer.precision=16-mixed")
    for key in ("accumulate_grad_batches", "val_check_interval", "log_every_n_steps"):
        if cfg.trainer[key] < 1:
            raise Refusal(f"trainer.{key}={cfg.trainer[key]}: must be at least 1")
    if not cfg.trainer.limit_val_batches > 0:
        raise Refusal(f"trainer.limit_val_batches={cfg.trainer.limit_val_batches}: must be above 0")
    if cfg.trainer.max_steps == 0:
        raise Refusal("trainer.max_steps=0: must be at least 1, or -1 for no limit")
    threads = cfg.num_threads
    if threads is not None and not (isinstance(threads, int) and threads >= 1):
        raise Refusal(f"num_threads={threads}: must be an integer of at least 1, or null for all cores")
    if not 0 <= cfg.seed < 2**32:
        raise Refusal(f"seed={cfg.seed}: must lie in [0, 2^32)")


def check_devices(data: ImageDataModule, trainer: Any) -> None:
    """Refuse more processes than there are cores, and batches for them that the set can't fill."""
    cores = os.cpu_count() or 1
    if trainer.strategy.root_device.type == "cpu" and trainer.num_devices > cores:
        raise Refusal(f"trainer.devices={trainer.num_devices}: must lie in [1, {cores}], the cores of this machine")
    try:
        batches = len(data.train_dataloader())
    except (ValueError, RuntimeError) as mistake:
        raise Refusal(explain("data", mistake)) from mistake
    interval = trainer.val_check_interval
    if trainer.check_val_every_n_epoch is not None and isinstance(interval, int) and interval > batches:
        allowed = f"at most {batches}, the batches of an epoch, or trainer.check_val_every_n_epoch null"
        raise Refusal(f"trainer.val_check_interval={interval}: must be {allowed}")


def check_fit(cfg: DictConfig, data: ImageDataModule, module: DiffusionModule, callbacks: list[Any]) -> None:
    """Refuse parts that are each right, but don't fit together."""
    size = cfg.model.image_size
    shape = (cfg.model.channels, *([size, size] if isinstance(size, int) else size))
    if shape != data.image_shape:
        raise Refusal(f"model.channels, model.image_size={shape}: must be those of the data, {data.image_shape}")
    classes = module.num_classes
    if classes is not None and classes < (data.num_classes or classes + 1):
        allowed = (
            "null for data without labels" if data.num_classes is None else f"at least {data.num_classes}, or null"
        )
        raise Refusal(f"model.num_classes={classes}: must be {allowed}")
    for grids in (callback for callback in callbacks if isinstance(callback, SampleGrid)):
        if grids.guidance and classes is None:
            raise Refusal(f"callbacks.samples.guidance={grids.guidance}: must be 0 for a network without labels")
        if grids.guidance and module.label_drop == 0:
            raise Refusal(f"callbacks.samples.guidance={grids.guidance}: must be 0 for module.label_drop=0")
        check_sampler(grids.sampler, module.denoiser.schedule)


def check_sampler(sampler: Sampler, schedule: NoiseSchedule) -> None:
    """Refuse more moves than the schedule has steps."""
    try:
        visited_times(schedule, sampler.num_steps, sampler.spacing)
    except ValueError as mistake:
        raise Refusal(explain("sampler", mistake)) from mistake
