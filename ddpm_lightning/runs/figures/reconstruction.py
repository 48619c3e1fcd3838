"""mode=reconstruction: how near held-out images come back from noise, in PSNR and SSIM."""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure
from tqdm import tqdm

from ddpm_lightning.diffusion.forward import diffuse
from ddpm_lightning.generation import spread
from ddpm_lightning.images import caption_strip, grid, save_png, to_uint8, to_unit
from ddpm_lightning.runs.figures.held_out import (
    batches,
    evaluation_file,
    held_out_images,
    one_line,
    outcome,
    protocol,
)
from ddpm_lightning.runs.figures.outcome import publish
from ddpm_lightning.runs.inversion import check_inversion, there_and_back
from ddpm_lightning.runs.refusal import Refusal
from ddpm_lightning.runs.sampling import Session, is_integer, plain, progress, write_csv

USUAL_SIGMA, USUAL_SIDE = 1.5, 11  # of SSIM's Gaussian window and its pixels, Wang et al. (2004), sec. III-B
SMALL_SIDE = 7  # of the same window, shrunk for images on which the usual one would see mostly mirrored borders
PICTURED = 10


class Quality(NamedTuple):
    """Of images that came back, each (B,): dB, infinite where nothing differs; at most 1; squared error in [0, 1]."""

    psnr: Tensor
    ssim: Tensor
    mse: Tensor


def quality(images: Tensor, returned: Tensor) -> Quality:
    """Of images (B, C, H, W) near [-1, 1], cut to that, on the scale [0, 1].

    SSIM by torchmetrics, which mirrors borders; with the Gaussian window of ``ssim_sigma``.
    """
    target, found = to_unit(images), to_unit(returned)
    psnr = peak_signal_noise_ratio(found, target, data_range=1.0, reduction="none", dim=(1, 2, 3))
    sigma = ssim_sigma(images.shape[2:])
    ssim = structural_similarity_index_measure(found, target, sigma=sigma, data_range=1.0, reduction="none")
    assert isinstance(ssim, Tensor)
    return Quality(psnr, ssim, (found - target).square().flatten(1).mean(1))


def ssim_sigma(size: torch.Size) -> float:
    """The usual 1.5 pixels, in a window of 11, or for images with a shorter side .95, in one of 7."""
    return USUAL_SIGMA if min(size) >= USUAL_SIDE else USUAL_SIGMA * SMALL_SIDE / USUAL_SIDE


class Way(NamedTuple):
    """One way into noise and back: what it is called, what was measured, and pictures of the noise and what came."""

    name: str
    title: str
    qualities: list[Quality]
    noisy: list[Tensor]
    returned: list[Tensor]

    def add(self, x_0: Tensor, noisy: Tensor, returned: Tensor, shown: list[int]) -> None:
        """Of images x_0 (B, C, H, W), with pictures of those at the places ``shown``; noise as it looks best."""
        self.qualities.append(Quality(*(values.cpu() for values in quality(x_0, returned))))
        self.noisy.append(to_uint8(noisy[shown]).cpu())
        self.returned.append(to_uint8(returned[shown]).cpu())

    def mean(self) -> dict[str, float]:
        """By the name of the figure. One image without a difference makes the mean PSNR infinite."""
        columns = (torch.cat(values).double().mean().item() for values in zip(*self.qualities, strict=True))
        return dict(zip(Quality._fields, columns, strict=True))


def reconstruction(session: Session) -> float:
    """Print a table, and leave it, its protocol and a picture in files: of estimates from x_t, and of inversion.

    Returns the mean PSNR of DDIM there and back.
    """
    cfg, schedule = session.cfg, session.loaded.denoiser.schedule
    check_inversion(session)
    times, steps = chosen_times(session), session.sampler.num_steps
    held_out = held_out_images(session)
    options = {key: cfg[key] for key in ("split", "num_images", "labels", "refinements")} | {"times": times}
    sigma = ssim_sigma(held_out.images.shape[2:])
    stated = protocol(session, held_out, **options, ssim_sigma=sigma)
    inversion = Way("ddim", f"DDIM, {steps} steps there and back", [], [], [])
    estimates = {t: Way(f"t={t}", f"x_0 from x_t, t={t}", [], [], []) for t in times}
    shown = spread(len(held_out.places), PICTURED)
    with progress(len(held_out.places), len(times) + 2 * steps, desc="Reconstruction") as bar:
        for batch in batches(session, held_out):
            count, x_0 = batch.wanted, batch.x_0[: batch.wanted]
            here = [i - batch.start for i in shown if batch.start <= i < batch.start + count]
            advance = partial(_advance, bar, count)
            for t, way in estimates.items():
                x_t = diffuse(batch.x_0, batch.noise.randn_like(batch.x_0), schedule(t))
                way.add(x_0, x_t[:count], session.denoiser(x_t, t, batch.label)[:count], here)
                advance(count)
            x_T, back = there_and_back(session, batch.x_0, batch.label, advance)
            inversion.add(x_0, x_T[:count] / 3, back[:count], here)
    ways = [inversion, *estimates.values()]
    table = {way.name: way.mean() for way in ways}
    path = evaluation_file(session, stated, session.cfg.split)
    print(f"{'':<8}{'PSNR':>9}{'SSIM':>9}{'MSE':>11}   of {len(held_out.places)} images, on [0, 1]")
    for way in ways:
        psnr, ssim, mse = table[way.name].values()
        print(f"{way.name:<8}{psnr:>6.2f} dB{ssim:>9.4f}{mse:>11.3e}   {way.title}")
    write_csv(
        path.with_suffix(".csv"),
        ("reconstruction", *Quality._fields),
        [(name, *(f"{value:.6g}" for value in row.values())) for name, row in table.items()],
    )
    save_png(picture(held_out.images[shown], ways, table), path.with_suffix(".png"))
    print(f"{path.with_suffix('.csv')} and .png: the table, and {len(shown)} of the images")
    figures = {f"{figure}_{name}": value for name, row in table.items() for figure, value in row.items()}
    first = figures["psnr_ddim"]
    steps_of = {f"sampler.{key}": stated["sampler"][key] for key in ("num_steps", "spacing")}
    figure = f"PSNR {first:.2f} dB SSIM {figures['ssim_ddim']:.4f} of DDIM there and back"
    found = outcome(session, figures, stated, one_line(figure, stated, {**options, "sampler": "ddim", **steps_of}))
    found.printed = True
    return publish(found, path)


def _advance(bar: tqdm, count: int, moved: int) -> None:
    """Of those that moved, with copies that fill the batch, ``count`` are wanted."""
    bar.update(min(count, moved))


def chosen_times(session: Session) -> list[int]:
    """Integer times, without repetition: those given as shares of T are rounded. Raises Refusal."""
    given, T = plain(session.cfg.times), session.loaded.denoiser.schedule.num_steps
    fine = isinstance(given, list) and all(isinstance(x, float) or is_integer(x) for x in given)
    if not (fine and all(0 < x <= 1 if isinstance(x, float) else 1 <= x <= T for x in given)):
        allowed = f"integers t in [1, {T}], or shares of T in (0, 1] with a decimal point"
        raise Refusal(f"times={given}: must be a list of {allowed}")
    return sorted({max(1, round(x * T)) if isinstance(x, float) else x for x in given})


def picture(originals: Tensor, ways: list[Way], table: dict[str, dict[str, float]]) -> Tensor:
    """Rows of the same images: as they are, and of each way the noisy ones above those that came back."""
    rows = [("held-out images", originals)]
    for way in ways:
        psnr, ssim, _ = table[way.name].values()
        rows += [(f"{way.title}: {psnr:.2f} dB, SSIM {ssim:.3f}", torch.cat(way.noisy)), ("", torch.cat(way.returned))]
    parts = []
    for caption, images in rows:
        row = grid(images, len(images)).expand(3, -1, -1)
        parts += [caption_strip(caption, row.shape[-1]), row] if caption else [row]
    return torch.cat(parts, dim=1)
