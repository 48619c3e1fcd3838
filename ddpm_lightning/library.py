"""The library's face: a trained model in one line, images in another."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ddpm_lightning.checkpoint import Loaded, best_device, load_denoiser
from ddpm_lightning.diffusion.guidance import steered
from ddpm_lightning.diffusion.samplers.base import Sampler
from ddpm_lightning.diffusion.samplers.ddim import DDIMSampler
from ddpm_lightning.generation import generate
from ddpm_lightning.images import to_unit


def load(path: str | Path, weights: str = "ema", device: torch.device | str | None = None) -> Loaded:
    """The model of a run folder or checkpoint file.

    ``weights``: "ema", the average that validated; "raw", the optimizer's own; or an average's decay, such as "0.999".
    ``device``: None for a GPU if there is one. Raises FileNotFoundError without a file, ValueError for one that this
    project did not write, or that lacks the weights. No code from the file is run.
    """
    if device is None:
        device = best_device()
    return load_denoiser(path, weights, device)


def sample(
    model: Loaded,
    num_images: int = 16,
    label: int | Sequence[int] | None = None,
    guidance: float = 0.0,
    sampler: Sampler | None = None,
    seed: int = 0,
    batch_size: int = 128,
) -> Tensor:
    """Images (num_images, C, H, W) in [0, 1] on the CPU, of the seeds ``seed``, ``seed`` + 1, ...

    ``label``: one class, or as many as there are images; None for all classes in turn. ``guidance`` is w in eps = (1
    + w) eps(label) - w eps(no label). ``sampler``: by default ``DDIMSampler(50)``. Raises ValueError for labels or
    guidance that the model has no use for, and for more steps than its schedule has.
    """
    if num_images < 1:
        raise ValueError(f"num_images must be at least 1, got {num_images}")
    num_classes = model.num_classes
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    labels = None
    if num_classes is None and label is not None:
        raise ValueError(f"label must be None for a model without labels, got {label}")
    if num_classes is not None:
        given = range(num_classes) if label is None else [label] if isinstance(label, int) else label
        if any(not 0 <= one < num_classes for one in given):
            raise ValueError(f"label must lie in [0, {num_classes - 1}], got {label}")
        if label is not None and len(given) not in (1, num_images):
            raise ValueError(f"label must be one, or one for each of {num_images} images, got {len(given)}")
        labels = [given[i % len(given)] for i in range(num_images)]
    denoiser = steered(model.denoiser, num_classes, guidance, label_drop=model.label_drop)
    seeds, shape = range(seed, seed + num_images), model.denoiser.image_shape
    device = next(model.denoiser.parameters()).device
    batches = generate(denoiser, sampler or DDIMSampler(50), shape, seeds, labels, batch_size, device)
    return torch.cat([to_unit(batch).cpu() for batch in batches])
