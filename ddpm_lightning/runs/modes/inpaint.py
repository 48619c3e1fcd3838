"""mode=inpaint: some pixels given, the rest sampled."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ddpm_lightning.diffusion.samplers.inpainting import Inpainting
from ddpm_lightning.generation import generate
from ddpm_lightning.images import grid, save_png, to_uint8
from ddpm_lightning.runs.refusal import Refusal
from ddpm_lightning.runs.sampling import (
    Session,
    block_of,
    check_integer,
    is_integer,
    output_folder,
    plain,
    progress,
    read_images,
    settings,
)

GREY = 0.0  # in place of what is to be sampled


def inpaint(session: Session) -> str:
    """Write a file for each seed, and ``grid.png``: the picture, what is known of it, and the samples."""
    cfg = session.cfg
    check_integer(cfg, "num_samples", 1)
    [image] = read_images("image", [cfg.image], session.shape)
    known = _known(plain(cfg.mask), session.shape)
    try:
        inpainting = Inpainting(
            session.sampler, image.to(session.device), known.to(session.device), cfg.jump, cfg.resamples
        )
    except ValueError as mistake:
        raise Refusal(str(mistake)) from mistake
    seeds = range(cfg.seed, cfg.seed + cfg.num_samples)
    labels = session.labels(seeds)
    described = {**settings(session), "label": plain(cfg.label), "image": str(cfg.image), "mask": plain(cfg.mask)}
    folder = output_folder(session, {**described, "jump": cfg.jump, "resamples": cfg.resamples, "seeds": list(seeds)})
    with progress(len(seeds), inpainting.num_moves) as bar:
        batches = generate(
            session.denoiser,
            inpainting,
            session.shape,
            seeds,
            labels,
            cfg.batch_size,
            session.device,
            bar.update,
            block_of(session.device),
        )
        samples = to_uint8(torch.cat(list(batches))).cpu()
    for seed, sample in zip(seeds, samples, strict=True):
        save_png(sample, folder / f"seed-{seed:06d}.png")
    shown = torch.cat([to_uint8(torch.stack([image, torch.where(known, image, GREY)])), samples])
    captions = ["given", "known", *(session.captions(labels) or [str(seed) for seed in seeds])]
    save_png(grid(shown, min(10, len(shown)), captions), folder / "grid.png")
    return f"{len(samples)} images in {folder}, beside the given one in {folder / 'grid.png'}"


def _known(mask: Any, shape: Sequence[int]) -> Tensor:
    """Which pixels (H, W) are kept: those outside of a box, or where a picture is black."""
    _, height, width = shape
    if not isinstance(mask, list):
        known = read_images("mask", [mask], (1, height, width))[0, 0] < 0
        if known.all():
            raise Refusal(f"mask={mask}: must have white pixels, which are sampled, and is black throughout")
        return known
    if len(mask) != 4 or not all(is_integer(side) for side in mask):
        raise Refusal(f"mask={mask}: must be a picture, or a box [left, top, right, bottom]")
    left, top, right, bottom = mask
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        raise Refusal(f"mask={mask}: must be a box within [0, 0, {width}, {height}]")
    known = torch.ones(height, width, dtype=torch.bool)
    known[top:bottom, left:right] = False
    return known
