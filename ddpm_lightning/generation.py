"""Many images from a denoiser and a sampler."""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from ddpm_lightning.diffusion.guidance import Watched, X0Estimator
from ddpm_lightning.diffusion.noise import PerImageNoise
from ddpm_lightning.diffusion.samplers.base import RandnLike, Sampler, Stage

# Where tried, a CPU's kernels treat images of batches of 16, 32, 48, ... alike to the last bit, but not of smaller ones
BLOCK = 16


class Trajectory(Protocol):
    """What takes a sampler's place: its own method ``trajectory``."""

    def trajectory(
        self, denoiser: X0Estimator, x_T: Tensor, label: Tensor | None, randn_like: RandnLike
    ) -> Iterator[Stage]: ...


def generate(
    denoiser: X0Estimator,
    sampler: Sampler | Trajectory,
    image_shape: Sequence[int],
    seeds: Sequence[int],
    labels: Sequence[int] | None = None,
    batch_size: int = 128,
    device: torch.device | str = "cpu",
    on_move: Callable[[int], None] = lambda images: None,
    block: int = 1,
) -> Iterator[Tensor]:
    """Batches of images (at most batch_size, C, H, W), near [-1, 1], one image for each seed, in their order.

    An image depends on its seed and label alone; with ``block`` = BLOCK on a CPU to the last bit, as batches are then
    filled up to a multiple of it. ``on_move`` is told after each move of the sampler how many images made it, for
    progress bars.
    """
    for start in range(0, len(seeds), batch_size):
        wanted = list(seeds[start : start + batch_size])
        missing = -len(wanted) % block
        noise = PerImageNoise(wanted + wanted[-1:] * missing, device)
        label = None
        if labels is not None:
            chosen = list(labels[start : start + batch_size])
            label = torch.tensor(chosen + chosen[-1:] * missing, device=device)
        x = noise.randn(image_shape)
        for stage in sampler.trajectory(denoiser, x, label, noise.randn_like):
            x = stage.x_s
            on_move(len(wanted))
        yield x[: len(wanted)]


def film(
    denoiser: X0Estimator,
    sampler: Sampler,
    image_shape: Sequence[int],
    seeds: Sequence[int],
    labels: Sequence[int] | None = None,
    device: torch.device | str = "cpu",
    on_move: Callable[[int], None] = lambda images: None,
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """The way from noise to the images of the seeds: times s, states x_s and estimates of x_0, each (N, C, H, W).

    The first is of pure noise, at T; each other is of a move's end, with the newest estimate, the last that the move
    was made by; the first has that of the first move. The last state is the image.
    """
    watched, noise = Watched(denoiser), PerImageNoise(seeds, device)
    label = None if labels is None else torch.tensor(labels, device=device)
    x_T = noise.randn(image_shape)
    for stage in sampler.trajectory(watched, x_T, label, noise.randn_like):
        if stage.moves_done == 1:
            yield denoiser.schedule.num_steps, x_T, watched.x_0
        on_move(len(seeds))
        yield stage.s, stage.x_s, watched.x_0


def spread(count: int, wanted: int) -> list[int]:
    """At most that many indices below ``count``, evenly spread, the first and the last among them."""
    if count <= wanted:
        return list(range(count))
    return [round(i * (count - 1) / (wanted - 1)) for i in range(wanted)]
