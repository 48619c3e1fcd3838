"""mode=likelihood: bits per dimension of held-out images."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from ddpm_lightning.diffusion.bound import VARIANCES
from ddpm_lightning.diffusion.guidance import Clipped, X0Estimator
from ddpm_lightning.diffusion.likelihood import (
    chance_of_times,
    flow_bound,
    flow_times,
    prior_term,
    reverse_term,
    spread_times,
)
from ddpm_lightning.diffusion.samplers.spacing import SPACINGS
from ddpm_lightning.runs.figures.held_out import (
    Batch,
    batches,
    evaluation_file,
    held_out_images,
    one_line,
    outcome,
    protocol,
)
from ddpm_lightning.runs.figures.outcome import publish
from ddpm_lightning.runs.refusal import Refusal
from ddpm_lightning.runs.sampling import Session, check_integer, is_integer, progress, write_csv

METHODS = ("bound", "ode")


class Terms(NamedTuple):
    """Of the bound, by time 0..T: the sum of L_(t-1) over the images that tried it, float64, and how many did."""

    total: Tensor
    tries: Tensor


def likelihood(session: Session) -> float:
    """Print bits per dimension with the standard error, and leave figures, protocol, and the bound's terms in files."""
    options = check(session)
    held_out = held_out_images(session, least=2)  # for a standard error
    stated = protocol(session, held_out, **options)
    del stated["sampler"]  # which has no part in it
    denoiser = Clipped(session.denoiser) if options["clip_x0"] else session.denoiser
    T = denoiser.schedule.num_steps
    terms = Terms(torch.zeros(T + 1, dtype=torch.float64), torch.zeros(T + 1, dtype=torch.int64))
    bits, priors = [], []
    with progress(len(held_out.places), options.get("num_times") or options["ode_steps"], desc="Likelihood") as bar:
        for batch in batches(session, held_out):
            if options["method"] == "bound":
                priors.append(prior_term(denoiser.schedule, batch.x_0)[: batch.wanted].cpu().double())
                bits.append(priors[-1] + bound(denoiser, batch, options, terms, bar))
            else:
                bits.append(flow(denoiser, batch, options, bar))
    each = torch.cat(bits)
    figures = {"bits_per_dim": each.mean().item(), "standard_error": each.std().item() / math.sqrt(len(each))}
    figure = f"bits/dim {figures['bits_per_dim']:.4f} +- {figures['standard_error']:.4f}"
    path = evaluation_file(session, stated, options["method"], session.cfg.split)
    if priors:
        shares = terms.total[1:] / chance_of_times(options["num_times"], T)[1:] / len(each)
        figures |= {"decoder": shares[0].item(), "divergences": shares[1:].sum().item()}
        figures["prior"] = torch.cat(priors).mean().item()
        leave_terms(terms, path)
    return publish(outcome(session, figures, stated, one_line(figure, stated, options)), path)


def check(session: Session) -> dict[str, Any]:
    """The keys that shape the figure, with what null stands for. Raises Refusal."""
    cfg, schedule = session.cfg, session.loaded.denoiser.schedule
    learns = bool(getattr(session.loaded.denoiser.net, "learned_variance", False))
    # where nothing is learned, that of sampler=ancestral, whose bound is tight on smooth data with many steps
    variance = cfg.variance or ("learned" if learns else "large")
    if variance not in VARIANCES:
        raise Refusal(f"variance={variance}: must be null, or one of {', '.join(VARIANCES)}")
    if variance == "learned" and not learns:
        raise Refusal("variance=learned: must be small or large for a network that learns none")
    if cfg.method not in METHODS:
        raise Refusal(f"method={cfg.method}: must be one of {', '.join(METHODS)}")
    options = {"method": cfg.method, **{key: cfg[key] for key in ("split", "num_images", "labels", "clip_x0")}}
    options["variance"] = variance
    T = schedule.num_steps
    if cfg.method == "bound":
        if cfg.num_times is not None and not (is_integer(cfg.num_times) and 1 <= cfg.num_times <= T):
            raise Refusal(f"num_times={cfg.num_times}: must be null for all, or an integer in [1, {T}]")
        return {**options, "num_times": cfg.num_times or T}
    if schedule.ends_in_noise:
        raise Refusal("method=ode: must be bound for schedule.zero_terminal_snr=true, where sigma / alpha has no end")
    check_integer(cfg, "ode_steps", 1, T)
    check_integer(cfg, "num_probes", 1)
    if cfg.ode_spacing not in SPACINGS:
        raise Refusal(f"ode_spacing={cfg.ode_spacing}: must be one of {', '.join(SPACINGS)}")
    return {**options, **{key: cfg[key] for key in ("ode_steps", "ode_spacing", "num_probes")}}


def bound(denoiser: X0Estimator, batch: Batch, options: dict[str, Any], terms: Terms, bar: tqdm) -> Tensor:
    """The sum over t of L_(t-1), (wanted,) bits per dimension: of all T times, or an unbiased estimate from some."""
    T, wanted = denoiser.schedule.num_steps, batch.wanted
    generators = batch.noise.generators
    offset = torch.stack([torch.rand((), generator=generator, dtype=torch.float64) for generator in generators])
    chance = chance_of_times(options["num_times"], T)
    total = torch.zeros(wanted, dtype=torch.float64)
    for t in spread_times(options["num_times"], T, offset):
        noise = batch.noise.randn_like(batch.x_0)
        found = reverse_term(denoiser, batch.x_0, noise, t.to(noise.device), options["variance"], batch.label)
        found = found[:wanted].cpu().double()
        terms.total.index_add_(0, t[:wanted], found)
        terms.tries.index_add_(0, t[:wanted], torch.ones_like(t[:wanted]))
        total += found / chance[t[:wanted]]
        bar.update(wanted)
    return total


def flow(denoiser: X0Estimator, batch: Batch, options: dict[str, Any], bar: tqdm) -> Tensor:
    """The probability flow's bound, (count,) bits per dimension."""
    times = flow_times(denoiser.schedule, options["ode_steps"], options["ode_spacing"])

    def signs(x: Tensor) -> list[Tensor]:
        """Rademacher's: of all with unit variance, those of the least noisy estimate."""
        return [2.0 * (batch.noise.randn_like(x) > 0) - 1 for _ in range(options["num_probes"])]

    def on_move() -> None:
        bar.update(batch.wanted)

    noise = batch.noise.randn_like(batch.x_0)
    found = flow_bound(denoiser, batch.x_0, noise, times, options["variance"], batch.label, signs, on_move)
    return found[: batch.wanted].cpu().double()


def leave_terms(terms: Terms, path: Path) -> None:
    """Write the mean L_(t-1) of each time as a table and as a plot."""
    tried = terms.tries.nonzero().flatten()
    times, means = tried.tolist(), (terms.total / terms.tries)[tried].tolist()
    rows = [(t, f"{mean:.9g}", int(terms.tries[t])) for t, mean in zip(times, means, strict=True)]
    write_csv(path.with_suffix(".csv"), ("t", "bits_per_dim", "count"), rows)
    plot(times, means, path.with_suffix(".png"))
    print(f"{path.with_suffix('.csv')} and .png: the terms by t")


def plot(times: Sequence[int], means: Sequence[float], path: Path) -> None:
    """Both axes logarithmic, as the first times count most."""
    from matplotlib.figure import Figure  # slow to import, and told of when it's for the first time

    canvas = Figure(figsize=(7, 4), layout="constrained")  # without pyplot, which would look for a screen
    panel = canvas.subplots()
    panel.plot(times, means, ".-" if len(times) < 100 else "-")
    panel.set_xscale("log")
    if min(means) > 0:
        panel.set_yscale("log")
    panel.set_xlabel("t (1: the decoder)")
    panel.set_ylabel("L_(t-1), bits/dim")
    panel.grid(alpha=0.3, which="both")
    canvas.savefig(path, dpi=120)
