"""Seeds shared out to several processes, each with a device of its own."""

import os
import signal
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException, spawn

from ddpm_lightning.runs.refusal import Failure, Refusal
from ddpm_lightning.runs.sampling import Session, check_integer, open_session

# a function of a module, given the share's session, its seeds, a folder, and the number of the process
Work = Callable[[Session, Sequence[int], Path, int], None]


def check_devices(cfg: DictConfig, kind: str) -> None:
    """Refuse more processes than there are cores, or GPUs."""
    check_integer(cfg, "devices", 1)
    there, things = (torch.cuda.device_count(), "GPUs") if kind == "cuda" else (os.cpu_count() or 1, "cores")
    if kind in ("cpu", "cuda") and cfg.devices > there:
        raise Refusal(f"devices={cfg.devices}: must lie in [1, {there}], the {things} of this machine")


def share_out(work: Work, session: Session, seeds: Sequence[int], folder: Path) -> None:
    """Call ``work`` in ``devices`` processes at once, each with every devices-th seed. Raises Failure if one fails."""
    config: Any = OmegaConf.to_container(session.cfg, resolve=True)
    devices = session.cfg.devices
    try:
        arguments = (work, config, list(seeds), folder, session.loaded.sha256)
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # for the processes, until they are ready
        try:
            context = spawn(_share, arguments, nprocs=min(devices, len(seeds)), join=False)
        finally:
            signal.signal(signal.SIGINT, handler)
        while not context.join():
            pass
    except KeyboardInterrupt:
        for process in context.processes:
            process.terminate()
        raise
    except (ProcessRaisedException, ProcessExitedException) as error:
        raise Failure(f"devices={devices}: one failed ({str(error).strip().splitlines()[-1]})") from error


def _share(rank: int, work: Work, config: dict[str, Any], seeds: list[int], folder: Path, sha256: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C is for the first process to report
    warnings.simplefilter("ignore")  # so is what is worth a warning
    cfg: DictConfig = OmegaConf.create(config)
    if cfg.device in ("auto", "cuda") and torch.cuda.is_available():
        cfg.device = f"cuda:{rank}"
    else:
        torch.set_num_threads(max(1, torch.get_num_threads() // cfg.devices))
    session = open_session(cfg)
    if session.loaded.sha256 != sha256:
        raise Failure("the checkpoint was replaced meanwhile")
    work(session, seeds[rank :: cfg.devices], folder, rank)
