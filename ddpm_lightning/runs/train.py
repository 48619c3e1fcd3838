"""The training command: configuration -> data, module, trainer -> a run folder."""

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
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from ddpm_lightning.callbacks.ema import averaged
from ddpm_lightning.callbacks.last_checkpoint import Interrupted
from ddpm_lightning.callbacks.overfit_check import OverfitCheck
from ddpm_lightning.callbacks.sample_grid import SampleGrid
from ddpm_lightning.callbacks.save_config import SaveConfig
from ddpm_lightning.callbacks.throughput import Throughput
from ddpm_lightning.data.base import ImageDataModule
from ddpm_lightning.module import DiffusionModule
from ddpm_lightning.runs.allocator import spare_memory
from ddpm_lightning.runs.build import MISTAKES, build, explain
from ddpm_lightning.runs.check import check_devices, check_fit, check_length, check_values
from ddpm_lightning.runs.command import write_json
from ddpm_lightning.runs.describe import describe, gather
from ddpm_lightning.runs.failure import explain_failure
from ddpm_lightning.runs.precision import AUTO, fastest
from ddpm_lightning.runs.record import finished_loss, record_start
from ddpm_lightning.runs.refusal import Failure, Refusal
from ddpm_lightning.runs.resume import Start, find_start
from ddpm_lightning.runs.sweep import RESULT

say = rank_zero_only(print)


def train(cfg: DictConfig) -> float:
    """Run the training that the configuration describes, or the rest of it. Returns the held-out loss."""
    _quieten()
    folder = _short(cfg.output_dir)
    check_values(cfg)
    if cfg.num_threads is not None:
        torch.set_num_threads(cfg.num_threads)
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    data = _build_data(cfg)
    cfg.data.num_classes = data.num_classes  # a folder of images says itself how many it has
    config: dict[str, Any] = dict(OmegaConf.to_container(cfg, resolve=True))  # type: ignore[arg-type]
    with _hold(folder):
        start = find_start(cfg, config, folder)
        if cfg.trainer.precision == AUTO:
            cfg.trainer.precision = start.precision or fastest(cfg.trainer.accelerator)
            config["trainer"]["precision"] = cfg.trainer.precision  # as the run is recorded
            say(f"precision {cfg.trainer.precision}, by trainer.precision=auto")
        finished = finished_loss(cfg, folder, start.step)
        if start.checkpoint and finished is not None:
            say(f"{folder} is finished: {start.step} steps, held-out loss {finished:.4f}")
            say(f"to go on: a larger trainer.max_steps; to train anew: name={cfg.name}-2, or remove the folder")
            return finished
        return _run(cfg, config, data, folder, start)


def _run(cfg: DictConfig, config: dict[str, Any], data: ImageDataModule, folder: Path, start: Start) -> float:
    spare_memory()  # once the data are prepared, which is long over when a step begins
    module: DiffusionModule = build(cfg, "module")
    try:
        module.optimizer(module.parameters())
    except MISTAKES as mistake:
        raise Refusal(f"optimizer: {mistake}; allowed: lr, weight_decay at least 0, betas two in [0, 1)") from mistake
    saved = SaveConfig(config)
    # null turns one off: callbacks.ema=null
    callbacks, loggers = ([made for made in build(cfg, key).values() if made] for key in ("callbacks", "logger"))
    trainer: Any = build(cfg, "trainer", callbacks=[saved, *callbacks], logger=loggers)
    data.trainer, trainer.datamodule = trainer, data
    check_devices(data, trainer)
    check_length(module, trainer)
    check_fit(cfg, data, module, callbacks)

    facts = gather(cfg.name, data, module, trainer)
    for callback in callbacks:
        if isinstance(callback, Throughput) and callback.flops is None:
            callback.flops = facts.flops
    if trainer.is_global_zero:
        OmegaConf.save(cfg, folder / "config.yaml", resolve=True)
        record_start(folder, facts, start)
    for line in describe(facts):
        say(line)
    say(f"folder  {folder}" + (f", going on from step {start.step}" if start.checkpoint else ""))
    for logger in trainer.loggers:
        final = {"metrics": {"final/val_loss": math.nan}} if isinstance(logger, TensorBoardLogger) else {}
        logger.log_hyperparams({**config, "effective_batch": facts.batch}, **final)
    try:
        trainer.fit(module, data, ckpt_path=start.checkpoint)
        return _finish(cfg, trainer, module, data, folder, saved)
    except Interrupted as stopped:
        say(f"\nstopped at step {trainer.global_step} by {stopped}; the same command goes on from there")
        raise SystemExit(128 + stopped.signum) from None
    except Exception as error:
        _end_processes(trainer)
        failure = explain_failure(error, cfg, folder)
        if failure is None:
            raise
        raise failure from error
    finally:
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.experiment.finish()  # or the next job of a sweep would log to the same run


def _end_processes(trainer: Any) -> None:
    """End the further devices' processes of a run that failed: they would wait for it, or Lightning kill this one."""
    watched: list[Any] = getattr(trainer.strategy.launcher, "procs", [])
    processes = watched.copy()
    watched.clear()  # every 5 s Lightning looks whether one of these ended badly, and then kills this process
    for process in processes:
        process.kill()
        process.wait()


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


def _finish(
    cfg: DictConfig, trainer: Any, module: DiffusionModule, data: ImageDataModule, folder: Path, saved: SaveConfig
) -> float:
    """Measure the held-out loss if the last step has none, record the result, and say what there is."""
    step = trainer.global_step
    if module.validated_at != step:
        # loggers count from 0, and after the end one further than in a validation of the same step
        trainer.fit_loop.epoch_loop._batches_that_stepped -= 1
        with averaged(trainer, module):
            trainer.validate(module, data, verbose=False)
    loss = float(trainer.callback_metrics["val/loss"])
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_scalar("final/val_loss", loss, step)
            logger.experiment.flush()
        elif isinstance(logger, WandbLogger):
            logger.log_metrics({"final/val_loss": loss}, step)
    if trainer.is_global_zero:
        length = {"max_steps": cfg.trainer.max_steps, "max_epochs": cfg.trainer.max_epochs}
        result = {"step": step, **length, "train_seconds": saved.train_seconds, "metrics": {"val_loss": loss}}
        write_json(folder / RESULT, result)
        _report(folder)
    say(f"\nfinished at step {step}; held-out loss {loss:.4f} (averaged weights)")
    say(f"folder      {folder}")
    say(f"report      {folder / 'report.md'}")
    for callback in trainer.callbacks:
        if isinstance(callback, SampleGrid) and callback.path_of(step).exists():
            say(f"samples     {_short(callback.path_of(step))}")
    say(f"checkpoint  {folder / 'checkpoints' / 'last.ckpt'}")
    python = _short(sys.executable)
    say(f"next        {python} scripts/sample.py ckpt={folder} num_samples=64 sampler=dpm_solver sampler.num_steps=20")
    say(f"            {python} scripts/evaluate.py ckpt={folder}")
    say(f"            {python.parent / 'tensorboard'} --logdir {folder.parent}")
    for check in (callback for callback in trainer.callbacks if isinstance(callback, OverfitCheck)):
        if check.failures:
            raise Failure(f"the batch is not learned: {', and '.join(check.failures)}")
        say(f"the batch is learned: {check.matching} of {check.num_samples} samples match")
    return loss


def _report(folder: Path) -> None:
    """Write the report. The run is over and whole by now: what goes wrong here is told, and does not fail it."""
    from ddpm_lightning.runs.report import write_report  # imports matplotlib

    try:
        write_report(folder)
    except Exception as error:
        again = f"python scripts/report.py {folder} tries again, and shows where"
        warnings.warn(f"the report was not written ({type(error).__name__}: {error}); {again}", stacklevel=1)


def _short(path: str | Path) -> Path:
    """The path as a user would type it here."""
    path = Path(path)
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _quieten() -> None:
    """Leave out what libraries print that says nothing of the run."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    # we log by steps, which may be longer apart than a small set's epochs
    warnings.filterwarnings("ignore", message="The number of training batches .* is smaller than the logging interval")
    warnings.filterwarnings("ignore", message="The dirpath has changed")  # of a run that goes on from another's file
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")  # a resumed run's
    # of 1x1 convolutions, for which all strides are one and the same order
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    warnings.filterwarnings("ignore", message="The PyTorch Profiler default schedule will be overridden")  # short runs
    warnings.filterwarnings("ignore", message=".*Profiler clears events at the end of each cycle")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated.*", category=FutureWarning)
