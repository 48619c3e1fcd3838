"""Batches from a set that lives in memory as one uint8 array, with an order that survives interruptions."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

# First part of the keys of random streams, so that no two purposes share one; 0 is the training step's
ORDER, FLIPS = 1, 2


class LabelledImages(NamedTuple):
    """Images (N, C, H, W) uint8 and labels (N,) int64; labels are all 0 where there are no classes."""

    images: Tensor
    labels: Tensor


def scale(images: Tensor) -> Tensor:
    """uint8 in [0, 255] -> float32 in [-1, 1]."""
    return images.float().div_(127.5).sub_(1)


def mirror(images: Tensor, mirrored: Tensor) -> Tensor:
    """Images (B, C, H, W), those for which ``mirrored`` (B,) is true flipped left to right."""
    # whole images by index_select: many times faster than torch.where, or than indexing with a tensor, on a CPU
    both = torch.cat([images, images.flip(-1)])
    return both.index_select(0, torch.arange(len(images), device=images.device) + len(images) * mirrored)


def batches_per_epoch(count: int, batch_size: int, world_size: int, accumulate: int) -> int:
    """For each rank, a multiple of ``accumulate``. Raises ValueError if there are too few images for one step."""
    batches = count // (batch_size * world_size * accumulate) * accumulate
    if batches == 0:
        most = count // (world_size * accumulate)
        shared = f"{count} training images for {world_size} devices and {accumulate} accumulated batches"
        raise ValueError(f"batch_size must lie in [1, {most}] ({shared}), got {batch_size}")
    return batches


class TrainingLoader:
    """Shuffled batches ``(images (B, C, H, W) float32 in [-1, 1], labels (B,) int64)``, on the device of the data.

    The order of an epoch depends on (seed, epoch) alone, its flips on (seed, epoch, rank).
    With ``state_dict`` and ``load_state_dict``, which Lightning calls, a resumed run goes on with the very
    batch that would have come next. Ranks share out each epoch without overlap. An epoch has a multiple of
    ``accumulate`` batches, so that no optimizer step averages over fewer; what is left over sits out.
    """

    def __init__(
        self,
        data: LabelledImages,
        batch_size: int,
        seed: int,
        flip: bool,
        rank: int = 0,
        world_size: int = 1,
        accumulate: int = 1,
    ) -> None:
        self.data = data
        self.batch_size = batch_size
        self.seed = seed
        self.flip = flip
        self.rank = rank
        self.world_size = world_size
        self.num_batches = batches_per_epoch(len(data.images), batch_size, world_size, accumulate)
        self.epoch = 0
        self.next_batch = 0

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        epoch, device = self.epoch, self.data.images.device
        # drawn on the CPU, the same for every device, and moved once an epoch
        order = torch.randperm(len(self.data.images), generator=self._generator(ORDER, epoch))
        order = order[self.rank :: self.world_size].to(device)
        mirrored = (torch.rand(len(order), generator=self._generator(FLIPS, epoch, self.rank)) < 0.5).to(device)
        for batch in range(self.next_batch, self.num_batches):
            # counted before the batch is handed out, so that a state saved while it is trained names the next
            self.next_batch = batch + 1
            if self.next_batch == self.num_batches:
                self.epoch, self.next_batch = epoch + 1, 0
            here = slice(batch * self.batch_size, (batch + 1) * self.batch_size)
            images = self.data.images.index_select(0, order[here])
            if self.flip:  # as bytes, a quarter of what they will be
                images = mirror(images, mirrored[here])
            yield scale(images), self.data.labels[order[here]]

    def _generator(self, purpose: int, *key: int) -> torch.Generator:
        seed = np.random.SeedSequence((purpose, self.seed, *key)).generate_state(1, np.uint64)[0]
        return torch.Generator().manual_seed(int(seed))

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "next_batch": self.next_batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.next_batch = state["epoch"], state["next_batch"]


class EvaluationLoader:
    """All images once, in order, unflipped; batches as in training, the last ones smaller.

    Each rank takes every ``world_size``-th image, in as many batches as the others.
    """

    def __init__(self, data: LabelledImages, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        self.data = data
        most = -(-len(data.images) // world_size)
        self.chunks = torch.arange(rank, len(data.images), world_size).tensor_split(-(-most // batch_size))

    def __len__(self) -> int:
        return len(self.chunks)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for chunk in self.chunks:
            yield scale(self.data.images.index_select(0, chunk)), self.data.labels[chunk]
