"""The training command: configuration -> data, module, trainer -> a run folder."""

import copy
import json
import logging
import math
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch
from filelock import FileLock, Timeout
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from torch.utils.flop_counter import FlopCounterMode

from ddpm_lightning.callbacks.ema import averaged
from ddpm_lightning.callbacks.last_checkpoint import Interrupted
from ddpm_lightning.callbacks.sample_grid import SampleGrid
from ddpm_lightning.callbacks.save_config import SaveConfig
from ddpm_lightning.data.base import ImageDataModule
from ddpm_lightning.diffusion.samplers.spacing import visited_times
from ddpm_lightning.module import DiffusionModule
from ddpm_lightning.runs.build import MISTAKES, build, explain
from ddpm_lightning.runs.command import Refusal, write_json
from ddpm_lightning.runs.resume import Start, find_start
from ddpm_lightning.runs.sweep import RESULT

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "64-true")

say = rank_zero_only(print)


def train(cfg: DictConfig) -> float:
    """Run the training that the configuration describes, or the rest of it. Returns the held-out loss."""
    _quieten()
    folder = _short(cfg.output_dir)
    check_values(cfg)
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    data = _build_data(cfg)
    cfg.data.num_classes = data.num_classes  # a folder of images says itself how many it has
    config: dict[str, Any] = dict(OmegaConf.to_container(cfg, resolve=True))  # type: ignore[arg-type]
    with _hold(folder):
        start = find_start(cfg, config, folder)
        finished = _finished(cfg, folder, start.step)
        if start.checkpoint and finished is not None:
            say(f"{folder} is finished: {start.step} steps, held-out loss {finished:.4f}")
            say(f"to go on: a larger trainer.max_steps; to train anew: name={cfg.name}-2, or remove the folder")
            return finished
        return _run(cfg, config, data, folder, start)


def _run(cfg: DictConfig, config: dict[str, Any], data: ImageDataModule, folder: Path, start: Start) -> float:
    module: DiffusionModule = build(cfg, "module")
    try:
        module.configure_optimizers()
    except MISTAKES as mistake:
        raise Refusal(f"optimizer: {mistake}; allowed: lr, weight_decay at least 0, betas two in [0, 1)") from mistake
    # null turns one off: callbacks.ema=null
    callbacks, loggers = ([made for made in build(cfg, key).values() if made] for key in ("callbacks", "logger"))
    trainer: Any = build(cfg, "trainer", callbacks=[SaveConfig(config), *callbacks], logger=loggers)
    data.trainer = trainer
    check_devices(data, trainer)
    check_fit(cfg, data, module, callbacks)

    if trainer.is_global_zero:
        OmegaConf.save(cfg, folder / "config.yaml", resolve=True)
    for line in describe(cfg.name, data, module, trainer):
        say(line)
    say(f"folder  {folder}" + (f", going on from step {start.step}" if start.checkpoint else ""))
    for logger in trainer.loggers:
        final = {"metrics": {"final/val_loss": math.nan}} if isinstance(logger, TensorBoardLogger) else {}
        logger.log_hyperparams(config, **final)
    try:
        trainer.fit(module, data, ckpt_path=start.checkpoint)
    except Interrupted as stopped:
        say(f"\nstopped at step {trainer.global_step} by {stopped}; the same command goes on from there")
        raise SystemExit(128 + stopped.signum) from None
    except MisconfigurationException as mistake:
        raise Refusal(explain("trainer", mistake)) from mistake
    return _finish(cfg, trainer, module, data, folder)


@contextmanager
def _hold(folder: Path) -> Iterator[None]:
    """Keep the run folder for this run alone; an empty one is removed again. Raises Refusal if another run has it."""
    if int(os.environ.get("LOCAL_RANK", "0")) > 0:  # a further process of the run that has it
        yield
        return
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise Refusal(f"name: must be another one while a run is going on in {folder}") from error
    except OSError as error:
        raise Refusal(f"name, output_dir: must be a folder that can be written ({error})") from error
    try:
        yield
    finally:
        lock.release()
        if set(os.listdir(folder)) <= {".lock"}:
            (folder / ".lock").unlink(missing_ok=True)
            for path in made:
                path.rmdir()


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
    if not 0 <= cfg.seed < 2**32:
        raise Refusal(f"seed={cfg.seed}: must lie in [0, 2^32)")


def _build_data(cfg: DictConfig) -> ImageDataModule:
    """The data module, its files in place, and its sizes checked, before anything is written."""
    data: ImageDataModule = build(cfg, "data")
    try:
        data.prepare_data()
        data.split("val")
        data.split("train")
    except MISTAKES as mistake:
        raise Refusal(explain("data", mistake)) from mistake
    return data


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
        try:
            visited_times(module.denoiser.schedule, grids.sampler.num_steps, grids.sampler.spacing)
        except ValueError as mistake:
            raise Refusal(explain("sampler", mistake)) from mistake


def describe(name: str, data: ImageDataModule, module: DiffusionModule, trainer: Any) -> list[str]:
    """What is about to run, in a few lines: sizes, cost, and length."""
    net = module.denoiser.net
    count, held_out = (len(data.split(split).images) for split in ("train", "val"))
    devices, accumulated = trainer.world_size, trainer.accumulate_grad_batches
    batch = data.batch_size * devices * accumulated
    steps = trainer.max_steps if trainer.max_steps > 0 else (trainer.max_epochs or 0) * (count // batch)
    parts = ", ".join(f"{part} {count_parameters(child):.3f}" for part, child in net.named_children())
    shape = "x".join(map(str, data.image_shape))
    classes = f"{data.num_classes} classes" if data.num_classes else "unlabelled"
    return [
        f"{name}: {count} training and {held_out} held-out images, {shape}, {classes}",
        f"network {count_parameters(net):.3f} M parameters ({parts}),"
        f" {flops(module) / 1e9:.4g} GFLOP forward per image",
        f"batch   {batch} = {data.batch_size} x {devices} devices x {accumulated} accumulated; {steps} steps,"
        f" {steps * batch / count:.1f} epochs, {steps * batch} images",
        f"device  {trainer.strategy.root_device.type}, {trainer.precision}",
    ]


def count_parameters(module: torch.nn.Module) -> float:
    """In millions."""
    return sum(parameter.numel() for parameter in module.parameters()) / 1e6


def flops(module: DiffusionModule) -> int:
    """Floating-point operations of the network's forward pass for one image."""
    net = copy.deepcopy(module.denoiser.net).to("meta")
    image, time = torch.empty(1, *module.denoiser.image_shape, device="meta"), torch.empty(1, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(image, time, None)
    return counter.get_total_flops()


def _tensorboards(trainer: Any) -> list[TensorBoardLogger]:
    return [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]


def _finish(cfg: DictConfig, trainer: Any, module: DiffusionModule, data: ImageDataModule, folder: Path) -> float:
    """Measure the held-out loss if the last step has none, record the result, and say what there is."""
    step = trainer.global_step
    if module.validated_at != step:
        with averaged(trainer, module):
            trainer.validate(module, data, verbose=False)
    loss = float(trainer.callback_metrics["val/loss"])
    for logger in _tensorboards(trainer):
        logger.experiment.add_scalar("final/val_loss", loss, step)
        logger.experiment.flush()
    if trainer.is_global_zero:
        length = {"max_steps": cfg.trainer.max_steps, "max_epochs": cfg.trainer.max_epochs}
        write_json(folder / RESULT, {"step": step, **length, "metrics": {"val_loss": loss}})
    say(f"\nfinished at step {step}; held-out loss {loss:.4f} (averaged weights)")
    say(f"folder      {folder}")
    for callback in trainer.callbacks:
        if isinstance(callback, SampleGrid) and callback.path_of(step).exists():
            say(f"samples     {_short(callback.path_of(step))}")
    say(f"checkpoint  {folder / 'checkpoints' / 'last.ckpt'}")
    python = _short(sys.executable)
    say(f"next        {python} scripts/sample.py ckpt={folder} num_samples=64 sampler=dpm_solver sampler.num_steps=20")
    say(f"            {python} scripts/evaluate.py ckpt={folder}")
    say(f"            {python.parent / 'tensorboard'} --logdir {folder.parent}")
    return loss


def _short(path: str | Path) -> Path:
    """The path as a user would type it here."""
    path = Path(path)
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _finished(cfg: DictConfig, folder: Path, step: int) -> float | None:
    """The held-out loss of a run that has come to its end, for as long as is asked now; else None."""
    try:
        result = json.loads((folder / RESULT).read_text())
    except (OSError, ValueError):
        return None
    as_long = (result["max_steps"], result["max_epochs"]) == (cfg.trainer.max_steps, cfg.trainer.max_epochs)
    over = (as_long and result["step"] == step) or 0 < cfg.trainer.max_steps <= step
    return float(result["metrics"]["val_loss"]) if over else None


def _quieten() -> None:
    """Leave out what libraries print that says nothing of the run."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message="The number of training batches .* is smaller than the logging interval")
    warnings.filterwarnings("ignore", message="The dirpath has changed")  # of a run that goes on from another's file
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")  # a resumed run's
    warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated.*", category=FutureWarning)
