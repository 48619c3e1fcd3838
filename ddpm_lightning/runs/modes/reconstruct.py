"""mode=reconstruct: pictures encoded into noise, and back."""

from pathlib import Path

import torch
from torchmetrics.functional.image import peak_signal_noise_ratio

from ddpm_lightning.images import grid, save_png, to_uint8, to_unit
from ddpm_lightning.runs.inversion import check_inversion, there_and_back
from ddpm_lightning.runs.refusal import Refusal
from ddpm_lightning.runs.sampling import (
    Session,
    output_folder,
    plain,
    progress,
    read_images,
    settings,
    write_csv,
)

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


def reconstruct(session: Session) -> str:
    """Write ``grid.png``, the pictures, their noise and what comes back, and ``psnr.csv``; print the errors."""
    cfg = session.cfg
    check_inversion(session)
    given = plain(cfg.images)
    paths = [Path(str(p)).expanduser() for p in (given if isinstance(given, list) else [given])]
    if len(paths) == 1 and paths[0].is_dir():
        found = sorted(path for path in paths[0].iterdir() if path.suffix.lower() in ENDINGS)
        paths = [path for path in found if path.name != "grid.png"]  # of a folder that mode=samples has made
    if not paths:
        raise Refusal(f"images={given}: must be a picture, a list of them, or a folder that has some")
    images = read_images("images", [str(path) for path in paths], session.shape)
    labels = session.labels(range(cfg.seed, cfg.seed + len(images)))
    described = {**settings(session), "label": plain(cfg.label), "seed": cfg.seed, "refinements": cfg.refinements}
    folder = output_folder(session, {**described, "images": [str(path) for path in paths]})
    steps = session.sampler.num_steps
    noises, returned = [], []
    with progress(len(images), 2 * steps) as bar:
        for start in range(0, len(images), cfg.batch_size):
            part = images[start : start + cfg.batch_size].to(session.device)
            label = None if labels is None else torch.tensor(labels[start : start + len(part)], device=session.device)
            x_T, back = there_and_back(session, part, label, bar.update)
            noises.append(x_T.cpu())
            returned.append(back.cpu())
    noise, back = torch.cat(noises), torch.cat(returned)
    psnr = [
        peak_signal_noise_ratio(to_unit(b)[None], to_unit(a)[None], data_range=1.0).item()
        for a, b in zip(images, back, strict=True)
    ]
    write_csv(
        folder / "psnr.csv",
        ("image", "psnr"),
        [(path.name, f"{p:.3f}") for path, p in zip(paths, psnr, strict=True)],
    )
    rows = torch.cat([to_uint8(images), to_uint8(noise / 3), to_uint8(back)])
    save_png(grid(rows, len(images)), folder / "grid.png")
    for path, p in zip(paths, psnr, strict=True):
        print(f"{path.name:<24}{p:8.2f} dB")
    mean = sum(psnr) / len(psnr)
    return f"mean PSNR {mean:.2f} dB over {len(psnr)} images, {steps} steps there and back; {folder / 'grid.png'}"
