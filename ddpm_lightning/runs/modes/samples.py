"""mode=samples: a file for each seed, and a grid."""

import os
import signal
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from torch import Tensor
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException, spawn

from ddpm_lightning.images import grid, save_png
from ddpm_lightning.runs.refusal import Failure, Refusal
from ddpm_lightning.runs.sampling import (
    Session,
    check_integer,
    generate_uint8,
    open_session,
    output_folder,
    plain,
    sampling_context,
    settings,
)

COLUMNS = 8  # of the grid, unless its columns are the classes


def draw(session: Session) -> str:
    """Draw the images of the seeds that have no file yet, on one or several devices; then the grid of all."""
    cfg = session.cfg
    check_integer(cfg, "num_samples", 1)
    check_integer(cfg, "devices", 1)
    cores = os.cpu_count() or 1
    if session.device.type == "cpu" and cfg.devices > cores:
        raise Refusal(f"devices={cfg.devices}: must lie in [1, {cores}], the cores of this machine")
    if session.device.type == "cuda" and cfg.devices > torch.cuda.device_count():
        raise Refusal(f"devices={cfg.devices}: must lie in [1, {torch.cuda.device_count()}], the GPUs of this machine")
    seeds = range(cfg.seed, cfg.seed + cfg.num_samples)
    labels = session.labels(seeds)
    folder = output_folder(session, {**settings(session), "label": plain(cfg.label)})
    missing = [seed for seed in seeds if not path_of(folder, seed).exists()]
    if cfg.devices == 1:
        draw_files(session, missing, folder)
    elif missing:
        config = OmegaConf.to_container(cfg, resolve=True)
        arguments = (config, missing, str(folder), session.loaded.sha256)
        try:
            spawn(_draw_share, arguments, nprocs=min(cfg.devices, len(missing)))
        except (ProcessRaisedException, ProcessExitedException) as error:
            raise Failure(f"devices={cfg.devices}: one failed ({str(error).strip().splitlines()[-1]})") from error
    images = torch.stack([_read(path_of(folder, seed), session.shape) for seed in seeds])
    all_classes = labels is not None and cfg.label == "all"
    columns = session.num_classes if all_classes else min(COLUMNS, len(images))
    save_png(grid(images, columns or COLUMNS, session.captions(labels)), folder / "grid.png")
    if cfg.npz:
        given = np.array(labels or [], dtype=np.int64)
        part = folder / f".images.{os.getpid()}.npz"
        np.savez_compressed(part, images=images.movedim(1, -1).numpy(), seeds=seeds, labels=given)
        os.replace(part, folder / "images.npz")
    kept = f", {len(seeds) - len(missing)} of them kept" if len(missing) < len(seeds) else ""
    return f"{len(seeds)} images{kept} in {folder}, all of them in {folder / 'grid.png'}"


def path_of(folder: Path, seed: int) -> Path:
    """The file of a seed's image."""
    return folder / f"seed-{seed:06d}.png"


def draw_files(session: Session, seeds: Sequence[int], folder: Path) -> None:
    """Draw images, and write each as soon as its batch is done."""
    done = 0
    for batch in generate_uint8(session, seeds, session.labels(seeds)):
        for image in batch:
            save_png(image, path_of(folder, seeds[done]))
            done += 1


def _draw_share(rank: int, config: dict, seeds: list[int], folder: str, sha256: str) -> None:
    """One of several processes, with every devices-th seed."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C is for the first process to report
    cfg: DictConfig = OmegaConf.create(config)
    if cfg.device in ("auto", "cuda") and torch.cuda.is_available():
        cfg.device = f"cuda:{rank}"
    else:
        torch.set_num_threads(max(1, torch.get_num_threads() // cfg.devices))
    session = open_session(cfg)
    if session.loaded.sha256 != sha256:
        raise Failure("the checkpoint was replaced meanwhile")
    with sampling_context(session):
        draw_files(session, seeds[rank :: cfg.devices], Path(folder))


def _read(path: Path, shape: tuple[int, ...]) -> Tensor:
    """A file's image (C, H, W) uint8. Raises Refusal for one that we did not write."""
    try:
        array = np.array(Image.open(path))
        image = torch.from_numpy(array[None] if array.ndim == 2 else array.transpose(2, 0, 1))
    except (OSError, ValueError, SyntaxError):
        image = torch.empty(0)
    if tuple(image.shape) != shape:
        raise Refusal(f"output_dir={path.parent}: {path.name} there is broken or no such image; remove it")
    return image
