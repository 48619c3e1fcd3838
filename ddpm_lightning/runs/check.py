"""What Lightning or the parts alone would accept, and what would then fail late or silently."""

import os
from typing import Any

from omegaconf import DictConfig

from ddpm_lightning.adversarial import Adversarial
from ddpm_lightning.callbacks.best_checkpoint import BestCheckpoint
from ddpm_lightning.callbacks.frechet import KEY, FrechetDistance
from ddpm_lightning.callbacks.sample_grid import SampleGrid
from ddpm_lightning.data.base import ImageDataModule
from ddpm_lightning.diffusion.denoiser import Denoiser
from ddpm_lightning.diffusion.loss import Denoising, VariationalBound
from ddpm_lightning.diffusion.parameterization import Epsilon
from ddpm_lightning.diffusion.samplers.base import Sampler
from ddpm_lightning.diffusion.samplers.spacing import visited_times
from ddpm_lightning.diffusion.timesteps import ImportanceTimesteps
from ddpm_lightning.module import DiffusionModule, total_steps
from ddpm_lightning.runs.build import MISTAKES, explain
from ddpm_lightning.runs.precision import AUTO
from ddpm_lightning.runs.refusal import Refusal

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "64-true")


def check_values(cfg: DictConfig) -> None:
    """Refuse what Lightning would accept, and what would then fail late or silently."""
    precision, clip = str(cfg.trainer.precision), cfg.trainer.gradient_clip_val
    if precision not in (*PRECISIONS, AUTO):  # half-precision weights would ruin the average and the schedule
        raise Refusal(f"trainer.precision={precision}: must be one of {', '.join((*PRECISIONS, AUTO))}")
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
        batches = data.num_batches
        data.train_dataloader()
    except (ValueError, RuntimeError) as mistake:
        raise Refusal(explain("data", mistake)) from mistake
    held_out, limit = len(data.val_dataloader()), trainer.limit_val_batches
    if isinstance(limit, float) and int(held_out * limit) == 0:
        raise Refusal(f"trainer.limit_val_batches={limit}: must leave at least one of {held_out} held-out batches")
    interval = trainer.val_check_interval
    if trainer.check_val_every_n_epoch is not None and isinstance(interval, int) and interval > batches:
        allowed = f"at most {batches}, the batches of an epoch, or trainer.check_val_every_n_epoch null"
        raise Refusal(f"trainer.val_check_interval={interval}: must be {allowed}")


def check_length(module: DiffusionModule, trainer: Any) -> None:
    """Refuse a learning-rate schedule that does not suit the run's length."""
    try:
        module.lr_schedule(0, total_steps(trainer))
    except ValueError as mistake:
        raise Refusal(explain("lr_schedule", mistake)) from mistake


def check_fit(cfg: DictConfig, data: ImageDataModule, module: DiffusionModule, callbacks: list[Any]) -> None:
    """Refuse parts that are each right, but don't fit together."""
    size = cfg.model.image_size
    shape = (cfg.model.channels, *([size, size] if isinstance(size, int) else size))
    if shape != data.image_shape:
        raise Refusal(f"model.channels, model.image_size={shape}: must be those of the data, {data.image_shape}")
    check_objective(module)
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
        check_sampler(grids.sampler, module.denoiser)
    check_distance(data, module, callbacks)


def check_distance(data: ImageDataModule, module: DiffusionModule, callbacks: list[Any]) -> None:
    """Make the extractor of the in-training distance, if there is to be one; refuse what would fail when it's due."""
    active = [callback for callback in callbacks if isinstance(callback, FrechetDistance) and callback.is_active]
    for distance in active:
        check_sampler(distance.sampler, module.denoiser)
        try:
            distance.prepare(data)
        except MISTAKES as mistake:
            raise Refusal(explain("features", mistake)) from mistake
    if not active and any(isinstance(c, BestCheckpoint) and c.monitor == KEY for c in callbacks):
        measured = "callbacks.distance.every_n_train_steps or every_n_epochs"
        raise Refusal(f"callbacks.best.monitor={KEY}: must be val/loss, or {measured} be given")


def check_objective(module: DiffusionModule) -> None:
    """Refuse terms that would learn nothing, or leave a part of the network untrained."""
    denoiser = module.denoiser
    terms = list(module.objective.values())
    if denoiser.schedule.ends_in_noise:
        if isinstance(denoiser.parameterization, Epsilon):
            raise Refusal("schedule.zero_terminal_snr=true: must be false for parameterization=epsilon; allowed: v, x0")
        if any(isinstance(term, Denoising) and term.space == "noise" for term in terms):
            raise Refusal(
                "schedule.zero_terminal_snr=true: must be false for objective.denoising.space=noise, where t = T has"
                " weight 0; allowed: objective.denoising.space=output"
            )
    times, T = module.timesteps, denoiser.schedule.num_steps
    if isinstance(times, ImportanceTimesteps) and len(times.counts) != T:
        raise Refusal(f"timesteps.num_steps={len(times.counts)}: must be {T}, as of the schedule")
    for term in terms:
        if isinstance(term, Adversarial) and term.channels != denoiser.image_shape[0]:
            raise Refusal(
                f"objective.adversarial.channels={term.channels}: must be {denoiser.image_shape[0]}, the data's"
            )
    learns = getattr(denoiser.net, "learned_variance", False)
    bounds = [term.variance for term in terms if isinstance(term, VariationalBound)]
    if "learned" in bounds and not learns:
        raise Refusal("model.learned_variance=false: must be true for objective.bound.variance=learned")
    if learns and "learned" not in bounds:
        raise Refusal("model.learned_variance=true: must be false for an objective that trains no variance")


def check_sampler(sampler: Sampler, denoiser: Denoiser) -> None:
    """Refuse more moves than the schedule has steps, and a variance that the network has not learned."""
    try:
        visited_times(denoiser.schedule, sampler.num_steps, sampler.spacing)
    except ValueError as mistake:
        raise Refusal(explain("sampler", mistake)) from mistake
    if sampler.learned_variance and not getattr(denoiser.net, "learned_variance", False):
        raise Refusal("sampler.variance=learned: must be small or large for a network that learns none")
