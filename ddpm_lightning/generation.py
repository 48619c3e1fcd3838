"""Many images from a denoiser and a sampler."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from ddpm_lightning.diffusion.guidance import X0Estimator
from ddpm_lightning.diffusion.noise import PerImageNoise
from ddpm_lightning.diffusion.samplers.base import Sampler


def generate(
    denoiser: X0Estimator,
    sampler: Sampler,
    image_shape: Sequence[int],
    seeds: Sequence[int],
    labels: Sequence[int] | None = None,
    batch_size: int = 128,
    device: torch.device | str = "cpu",
    on_move: Callable[[int], None] = lambda images: None,
) -> Iterator[Tensor]:
    """Batches of images (at most batch_size, C, H, W), near [-1, 1], one image for each seed, in their order.

    An image depends on its seed and label alone. ``on_move`` is told after each move of the sampler how many
    images made it, for progress bars.
    """
    for start in range(0, len(seeds), batch_size):
        noise = PerImageNoise(seeds[start : start + batch_size], device)
        label = None if labels is None else torch.tensor(labels[start : start + batch_size], device=device)
        x = noise.randn(image_shape)
        for stage in sampler.trajectory(denoiser, x, label, noise.randn_like):
            x = stage.x_s
            on_move(len(x))
        yield x
