"""mode=trajectory: the way from noise to an image."""

import torch
from tqdm import tqdm

from ddpm_lightning.generation import film, spread
from ddpm_lightning.images import grid, save_gif, save_png, to_uint8
from ddpm_lightning.runs.sampling import Session, check_integer, output_folder, plain, settings

SECONDS = 3.0  # of the film
MOST_FRAMES = 100


def trajectory(session: Session) -> str:
    """Write ``strip.png``, for each image a row of states x_t above one of estimates of x_0, and ``film.gif``."""
    cfg = session.cfg
    check_integer(cfg, "num_samples", 1, 65)
    check_integer(cfg, "stages", 2, 101)
    seeds = range(cfg.seed, cfg.seed + cfg.num_samples)
    labels = session.labels(seeds)
    described = {**settings(session), "seeds": list(seeds), "label": plain(cfg.label), "stages": cfg.stages}
    folder = output_folder(session, described)
    times, states, estimates = [], [], []
    with tqdm(total=session.sampler.num_steps, desc="Sampling", unit="step", disable=None) as bar:
        way = film(
            session.denoiser, session.sampler, session.shape, seeds, labels, session.device, lambda _: bar.update()
        )
        for s, x_s, x_0 in way:
            times.append(s)
            states.append(to_uint8(x_s).cpu())
            estimates.append(to_uint8(x_0).cpu())
    shown = spread(len(times), cfg.stages)
    # (images, 2, stages, C, H, W)
    table = torch.stack([torch.stack([rows[i] for i in shown], dim=1) for rows in (states, estimates)], dim=1)
    captions = [f"t={times[i]}" for i in shown] * (2 * len(seeds))
    save_png(grid(table.flatten(0, 2), len(shown), captions), folder / "strip.png")
    # side by side: the state, and the estimate
    frames = [grid(torch.cat([states[i], estimates[i]]), len(seeds)) for i in spread(len(times), MOST_FRAMES)]
    save_gif(frames, folder / "film.gif", SECONDS)
    return f"{folder / 'strip.png'} and {folder / 'film.gif'}: states above, estimates of x_0 below"
