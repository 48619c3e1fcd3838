"""Noise that depends on an image's seed alone: not on the batch size, the device, or its neighbours."""

from collections.abc import Sequence

import torch
from torch import Tensor


class PerImageNoise:
    """One stream of standard normal noise for each seed.

    Drawn on the CPU and moved, as the generators of different devices give different numbers.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def randn(self, image_shape: Sequence[int]) -> Tensor:
        """The next noise of every image: (len(seeds), *image_shape), float32."""
        return torch.stack([torch.randn(tuple(image_shape), generator=g) for g in self.generators]).to(self.device)

    def randn_like(self, x: Tensor) -> Tensor:
        """The same, for a batch x (len(seeds), C, H, W)."""
        if len(x) != len(self.generators):
            raise ValueError(f"noise for {len(self.generators)} seeds cannot serve a batch of {len(x)} images")
        return self.randn(x.shape[1:])
