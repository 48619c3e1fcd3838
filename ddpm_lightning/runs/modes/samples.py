"""mode=samples: a file for each seed, and a grid."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ddpm_lightning.images import grid, save_png
from ddpm_lightning.runs.refusal import Refusal
from ddpm_lightning.runs.sampling import (
    Session,
    check_integer,
    generate_uint8,
    output_folder,
    plain,
    sampling_context,
    settings,
)
from ddpm_lightning.runs.sharing import check_devices, share_out

COLUMNS = 8  # of the grid, unless its columns are the classes


def draw(session: Session) -> str:
    """Draw the images of the seeds that have no file yet, on one or several devices; then the grid of all."""
    cfg = session.cfg
    check_integer(cfg, "num_samples", 1)
    check_devices(cfg, session.device.type)
    seeds = range(cfg.seed, cfg.seed + cfg.num_samples)
    labels = session.labels(seeds)
    folder = output_folder(session, {**settings(session), "label": plain(cfg.label)})
    missing = [seed for seed in seeds if not path_of(folder, seed).exists()]
    if cfg.devices == 1:
        draw_files(session, missing, folder)
    elif missing:
        share_out(draw_files, session, missing, folder)
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


def draw_files(session: Session, seeds: Sequence[int], folder: Path, rank: int = 0) -> None:
    """Draw images, and write each as soon as its batch is done."""
    done = 0
    with sampling_context(session):
        for batch in generate_uint8(session, seeds, session.labels(seeds), quiet=rank > 0):
            for image in batch:
                save_png(image, path_of(folder, seeds[done]))
                done += 1


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
