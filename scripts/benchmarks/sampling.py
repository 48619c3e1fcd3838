"""What a sampler costs beside the network, and on a checkpoint time against quality."""

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.peers import INSTALL
from benchmarks.setting import Setting
from benchmarks.show import leave
from ddpm_lightning import load
from ddpm_lightning.checkpoint import load_data
from ddpm_lightning.diffusion.samplers.ancestral import AncestralSampler
from ddpm_lightning.diffusion.samplers.base import Sampler
from ddpm_lightning.diffusion.samplers.ddim import DDIMSampler
from ddpm_lightning.diffusion.samplers.dpm_solver import DPMSolverSampler
from ddpm_lightning.diffusion.samplers.heun import HeunSampler
from ddpm_lightning.diffusion.samplers.unipc import UniPCSampler
from ddpm_lightning.diffusion.schedules.linear import LinearSchedule
from ddpm_lightning.evaluation.features import Classifier
from ddpm_lightning.evaluation.fidelity import frechet_distance
from ddpm_lightning.generation import generate
from ddpm_lightning.images import to_uint8

STEPS, BATCH = 200, 16


class Free:
    """A denoiser that costs nothing."""

    schedule = LinearSchedule()

    def __init__(self, x_T: torch.Tensor) -> None:
        self.x_0 = torch.zeros_like(x_T)
        self.schedule.to(x_T.device)

    def __call__(self, x_t: torch.Tensor, t: object, label: object = None) -> torch.Tensor:
        return self.x_0


class OnImages(TorchDispatchMode):
    """Counts operations, but for those on scalars: these cost next to nothing, and launch nothing on a GPU."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.count += isinstance(out, torch.Tensor) and out.ndim > 0
        return out


def sampling(setting: Setting, ckpt: str | None, num_images: int) -> None:
    """The loop's cost per step with a network that costs nothing, and with a checkpoint what steps buy."""
    x_T = torch.randn(BATCH, 3, setting.size, setting.size, device=setting.device)
    free = Free(x_T)
    samplers: list[Sampler] = [AncestralSampler(STEPS), DDIMSampler(STEPS), DPMSolverSampler(STEPS)]
    samplers += [UniPCSampler(STEPS), HeunSampler(STEPS)]
    loops: dict[str, Callable[[], Any]] = {type(s).__name__: partial(s, free, x_T) for s in samplers}
    loops |= {"AncestralSampler again": loops["AncestralSampler"]}
    try:
        loops["diffusers' DDPMScheduler"] = _theirs(x_T)
    except ImportError:
        print(f"diffusers is not installed: {INSTALL}")
    loops["the ancestral sampler's noise alone"] = partial(_noise, x_T)
    times: dict[str, list[float]] = {name: [] for name in loops}
    for turn in range(setting.repeats + 1):
        for name, loop in loops.items():
            start = setting.clock()
            loop()
            if turn:  # the first warms up
                times[name].append((setting.clock() - start) / STEPS)
    counts = {}
    for name, loop in loops.items():
        with OnImages() as counted:
            loop()
        counts[name] = counted.count / STEPS
    rows = [
        {"sampler": name, "us/step": statistics.median(taken) * 1e6, "operations on images": counts.get(name)}
        for name, taken in times.items()
    ]
    title = (
        f"A step of a sampler beside the network, {BATCH} images of 3x{setting.size}x{setting.size}, {setting.device},"
        f" {setting.threads} threads, medians of {setting.repeats}"
    )
    leave(setting.output, "sampling", title, rows, "us/step")
    if ckpt:
        quality(setting, ckpt, num_images, [AncestralSampler(1000), DPMSolverSampler(20), UniPCSampler(20)])


def _noise(x_T: torch.Tensor) -> None:
    for _ in range(STEPS):
        torch.randn_like(x_T)


def _theirs(x_T: torch.Tensor) -> Callable[[], Any]:
    """The ancestral loop of diffusers' DDPMPipeline, with a network that costs nothing."""
    from diffusers import DDPMScheduler

    scheduler, output = DDPMScheduler(num_train_timesteps=1000), torch.zeros_like(x_T)
    scheduler.set_timesteps(STEPS)

    def loop() -> None:
        x = x_T
        for t in scheduler.timesteps:
            x = scheduler.step(output, t, x).prev_sample

    return loop


def quality(setting: Setting, ckpt: str, num_images: int, samplers: list[Sampler]) -> None:
    """Seconds and Frechet distance of each sampler; the same seeds, and further ones, to see what chance does."""
    model = load(ckpt, device=setting.device)
    train = load_data(model.config).split("train")
    classifier = Classifier()
    classifier.fit(train.images, train.labels)
    real = classifier(train.images).features
    classes = model.config["model"]["num_classes"]
    rows: list[dict[str, Any]] = []
    for sampler in samplers:
        distances, taken = [], 0.0
        for first in (0, num_images):
            labels = None if classes is None else [i % classes for i in range(num_images)]
            start = time.perf_counter()
            seeds = range(first, first + num_images)
            batches = generate(model.denoiser, sampler, model.denoiser.image_shape, seeds, labels)
            images = torch.cat([to_uint8(batch) for batch in batches])
            taken += (time.perf_counter() - start) / 2
            distances.append(frechet_distance(classifier(images).features, real))
        row = {"sampler": f"{type(sampler).__name__} {sampler.num_steps}", "seconds": taken}
        row |= {"Frechet": distances[0], "other seeds": distances[1]}
        rows.append(row | {"x as fast": rows[0]["seconds"] / taken if rows else 1.0})
    title = f"{num_images} images of {ckpt}, Frechet distance in the features of a classifier, two sets of seeds"
    leave(setting.output, "sampling-quality", title, rows, "seconds")
