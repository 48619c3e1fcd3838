"""mode=interpolate: from one image to another."""

import torch
from torch import Tensor
from tqdm import tqdm

from ddpm_lightning.diffusion.forward import diffuse
from ddpm_lightning.diffusion.noise import NoiseBetween, PerImageNoise, slerp
from ddpm_lightning.diffusion.samplers.ddim import DDIMSampler
from ddpm_lightning.diffusion.samplers.inversion import invert
from ddpm_lightning.images import grid, save_gif, save_png, to_uint8
from ddpm_lightning.runs.refusal import Refusal
from ddpm_lightning.runs.sampling import (
    Session,
    check_integer,
    is_integer,
    output_folder,
    plain,
    progress,
    read_images,
    settings,
)

SECONDS = 3.0  # of the film
COLUMNS = 10


def interpolate(session: Session) -> str:
    """Write a file for each frame, ``grid.png``, and ``film.gif``, there and back."""
    cfg = session.cfg
    check_integer(cfg, "frames", 2, 1001)
    shares = torch.linspace(0, 1, cfg.frames, dtype=torch.float64)
    seeds, images = plain(cfg.seeds), plain(cfg.images)
    two = isinstance(seeds, list) and len(seeds) == 2
    if images is None and not (two and all(is_integer(s) and 0 <= s < 2**62 for s in seeds)):
        raise Refusal(f"seeds={seeds}: must be two integers of at least 0")
    if images is not None and not (isinstance(images, list) and len(images) == 2):
        raise Refusal(f"images={images}: must be two pictures")
    T = session.loaded.denoiser.schedule.num_steps
    if cfg.t is not None and (images is None or not (is_integer(cfg.t) and 1 <= cfg.t <= T)):
        raise Refusal(f"t={cfg.t}: must be null, or with images an integer in [1, {T}]")
    encoded = images is not None and cfg.t is None
    if encoded and (not isinstance(session.sampler, DDIMSampler) or session.sampler.eta):
        raise Refusal("sampler: must be ddim with sampler.eta=0 to encode images, as no other can be undone; or give t")
    ends = None if images is None else read_images("images", images, session.shape).to(session.device)
    label = session.labels([cfg.seed if seeds is None or images is not None else seeds[0]])  # one for all frames
    described = {**settings(session), "label": plain(cfg.label), "seed": cfg.seed, "frames": cfg.frames}
    folder = output_folder(session, {**described, "seeds": seeds, "images": images, "t": cfg.t})
    frames = []
    with progress(cfg.frames, session.sampler.num_steps) as bar:
        for part in shares.split(cfg.batch_size):
            labels = None if label is None else torch.tensor(label * len(part), device=session.device)
            frames.append(_frames(session, part, labels, seeds, ends, bar))
    pictures = to_uint8(torch.cat(frames)).cpu()
    if ends is not None:  # the pictures themselves
        pictures[0], pictures[-1] = to_uint8(ends).cpu()
    for i, picture in enumerate(pictures):
        save_png(picture, folder / f"frame-{i:04d}.png")
    save_png(grid(pictures, min(COLUMNS, len(pictures))), folder / "grid.png")
    there = [grid(picture[None], 1) for picture in pictures]
    save_gif([*there, *there[-2:0:-1]], folder / "film.gif", SECONDS)
    of = "" if label is None else f" of label {(session.captions(label) or label)[0]}"
    return f"{len(pictures)} frames{of} in {folder}, as {folder / 'grid.png'} and {folder / 'film.gif'}"


def _frames(
    session: Session, shares: Tensor, labels: Tensor | None, seeds: list[int], ends: Tensor | None, bar: tqdm
) -> Tensor:
    """Images (K, C, H, W) at these shares of the way."""
    noise: NoiseBetween | PerImageNoise = NoiseBetween((seeds[0], seeds[1]), shares.tolist(), session.device)
    start, sampler = session.cfg.t, session.sampler
    if ends is None:
        x = noise.randn(session.shape)
    else:
        noise = PerImageNoise([session.cfg.seed] * len(shares), session.device)  # one noise for all frames
        if start is None:
            two = None if labels is None else labels[:1].expand(2)
            sampler = DDIMSampler(sampler.num_steps, sampler.spacing, clip_x0=False)  # clipping can't be undone
            x_T = invert(session.denoiser, ends, sampler.num_steps, sampler.spacing, two)
            x = slerp(x_T[0], x_T[1], shares)
        else:
            blend = torch.lerp(ends[0], ends[1], shares.to(ends).view(-1, 1, 1, 1))
            x = diffuse(blend, noise.randn(session.shape), session.loaded.denoiser.schedule(start))
    for stage in sampler.trajectory(session.denoiser, x, labels, noise.randn_like, start):
        x = stage.x_s
        bar.update(len(x))
    return x
