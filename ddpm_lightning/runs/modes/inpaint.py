"""mode=inpaint: some pixels given, the rest sampled."""

import torch
from tqdm import tqdm

from ddpm_lightning.diffusion.samplers.inpainting import Inpainting
from ddpm_lightning.generation import BLOCK, generate
from ddpm_lightning.images import grid, save_png, to_uint8
from ddpm_lightning.runs.refusal import Refusal
from ddpm_lightning.runs.sampling import Session, check_integer, output_folder, plain, read_images, settings

GREY = 0.0  # in place of what is to be sampled


def inpaint(session: Session) -> str:
    """Write a file for each seed, and ``grid.png``: the picture, what is known of it, and the samples."""
    cfg = session.cfg
    check_integer(cfg, "num_samples", 1)
    [image] = read_images("image", [cfg.image], session.shape)
    [mask] = read_images("mask", [cfg.mask], (1, *session.shape[1:]))
    known = mask[0] < 0
    if known.all():
        raise Refusal(f"mask={cfg.mask}: must have white pixels, which are sampled, and is black throughout")
    try:
        inpainting = Inpainting(
            session.sampler, image.to(session.device), known.to(session.device), cfg.jump, cfg.resamples
        )
    except ValueError as mistake:
        raise Refusal(str(mistake)) from mistake
    seeds = range(cfg.seed, cfg.seed + cfg.num_samples)
    labels = session.labels(seeds)
    described = {**settings(session), "label": plain(cfg.label), "image": str(cfg.image), "mask": str(cfg.mask)}
    folder = output_folder(session, {**described, "jump": cfg.jump, "resamples": cfg.resamples, "seeds": list(seeds)})
    with tqdm(total=len(seeds), desc="Sampling", unit="image", disable=None) as bar:
        batches = generate(
            session.denoiser,
            inpainting,
            session.shape,
            seeds,
            labels,
            cfg.batch_size,
            session.device,
            lambda images: bar.update(images / inpainting.num_moves),
            BLOCK,
        )
        samples = to_uint8(torch.cat(list(batches))).cpu()
    for seed, sample in zip(seeds, samples, strict=True):
        save_png(sample, folder / f"seed-{seed:06d}.png")
    shown = torch.cat([to_uint8(torch.stack([image, torch.where(known, image, GREY)])), samples])
    captions = ["given", "known", *(session.captions(labels) or [str(seed) for seed in seeds])]
    save_png(grid(shown, min(10, len(shown)), captions), folder / "grid.png")
    return f"{len(samples)} images in {folder}, beside the given one in {folder / 'grid.png'}"
