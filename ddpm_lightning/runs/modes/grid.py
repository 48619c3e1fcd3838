"""mode=grid: the same seeds by several samplers, to choose one by eye."""

import time
from itertools import product

import torch
from tqdm import tqdm

from ddpm_lightning.generation import generate
from ddpm_lightning.images import caption_strip, grid, save_png, to_uint8
from ddpm_lightning.runs.check import check_sampler
from ddpm_lightning.runs.refusal import Refusal
from ddpm_lightning.runs.sampling import (
    Session,
    check_integer,
    check_numbers,
    named_sampler,
    network_passes,
    output_folder,
    plain,
    sampler_names,
    settings,
    steer,
    write_csv,
)


def compare(session: Session) -> str:
    """Write ``grid.png``, a row for each combination, and ``times.csv``; print the times."""
    cfg = session.cfg
    check_integer(cfg, "num_samples", 1, 65)
    names, steps, guidances = (
        plain(cfg.samplers),
        check_numbers(cfg, "num_steps", 1),
        check_numbers(cfg, "guidances", 0),
    )
    known = sampler_names()
    if not (isinstance(names, list) and names) or any(name not in known for name in names):
        raise Refusal(f"samplers={names}: must be a list of some of {', '.join(known)}")
    samplers = {(name, n): named_sampler(name, n) for name, n in product(names, steps)}
    for sampler in samplers.values():
        check_sampler(sampler, session.loaded.denoiser)
    denoisers = {guidance: steer(cfg, session.loaded, guidance) for guidance in guidances}
    seeds = range(cfg.seed, cfg.seed + cfg.num_samples)
    labels = session.labels(seeds)
    described = {**settings(session), "label": plain(cfg.label), "seeds": list(seeds)}
    for ignored in ("sampler", "guidance"):  # in favour of the lists
        del described[ignored]
    folder = output_folder(session, {**described, "samplers": names, "num_steps": steps, "guidances": guidances})
    rows, table = [], []
    for (name, n), guidance in tqdm(list(product(samplers, guidances)), desc="Combinations", disable=None):
        sampler, denoiser = samplers[name, n], denoisers[guidance]
        start = time.perf_counter()
        batches = generate(denoiser, sampler, session.shape, seeds, labels, cfg.batch_size, session.device)
        images = torch.cat([to_uint8(batch).cpu() for batch in batches])  # which waits for the device
        seconds = time.perf_counter() - start
        row = grid(images, len(images)).expand(3, -1, -1)
        strength = f", guidance {guidance}" if guidance else ""
        rows += [caption_strip(f"{name} {n}{strength}: {seconds:.2f} s", row.shape[-1]), row]
        calls = network_passes(sampler, denoiser)
        table.append((name, n, guidance, calls, round(seconds, 3)))
    save_png(torch.cat(rows, dim=1), folder / "grid.png")
    header = ("sampler", "num_steps", "guidance", "network_calls", "seconds")
    write_csv(folder / "times.csv", header, table)
    for line in (header, *table):
        print("  ".join(str(cell).ljust(13) for cell in line).rstrip())
    return f"{folder / 'grid.png'}: a row for each of {len(table)} combinations"
