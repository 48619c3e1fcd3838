"""Why a run could not go on, in one line, and what to do."""

import errno
from pathlib import Path

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig

from ddpm_lightning.callbacks.non_finite import NotFinite
from ddpm_lightning.checkpoint import read_checkpoint
from ddpm_lightning.runs.build import explain
from ddpm_lightning.runs.refusal import Failure, Refusal


def explain_failure(error: Exception, cfg: DictConfig, folder: Path) -> Failure | Refusal | None:
    """What to say of an error that ended the run of this folder; None where it is best shown as it is."""
    if isinstance(error, Failure | Refusal):
        return error
    if isinstance(error, MisconfigurationException):
        return Refusal(explain("trainer", error))
    if isinstance(error, NotFinite):
        return Failure(f"{error}; {_way_back(folder)}")
    # torch reports what it can't allocate on a CPU as a plain RuntimeError
    if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        batches = f"data.batch_size={cfg.data.batch_size} (data.eval_batch_size={cfg.data.eval_batch_size})"
        return Failure(
            f"out of memory with {batches}: try less, with trainer.accumulate_grad_batches, model.checkpointing=true,"
            " or trainer.precision=bf16-mixed"
        )
    no_space = _no_space(error)
    if no_space is not None:
        return Failure(
            f"{folder} can't be written ({no_space.strerror}); its checkpoints are whole, and the same command goes on"
            " from the last when there is space"
        )
    return None


def _no_space(error: BaseException | None) -> OSError | None:
    """What says that the disk is full: the error, or one that it hides, as torch.save's own does."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return error
        error = error.__cause__ or error.__context__
    return None


def _way_back(folder: Path) -> str:
    last = folder / "checkpoints" / "last.ckpt"
    if not last.exists():
        return "there is no checkpoint to go back to yet; try a lower optimizer.lr or another trainer.precision"
    step = read_checkpoint(last)["global_step"]
    return f"the same command with on_nan=skip goes back to {last}, of step {step}, and leaves such steps out"
