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


def slerp(a: Tensor, b: Tensor, share: Tensor) -> Tensor:
    """Between noises a and b (C, H, W) along the great circle, (K, C, H, W); a at share 0, b at 1.  Shoemake (1985).

    So that every point between has the norm that noise has. ``share`` is (K,).
    """
    cosine = (a.double() * b).sum() / (a.double().norm() * b.double().norm())
    angle = torch.arccos(cosine.clamp(-1, 1))
    share = share.double().view(-1, 1, 1, 1).to(a.device)
    if angle.sin() < 1e-6:  # the same direction, or nearly
        return ((1 - share) * a + share * b).to(a.dtype)
    return (((1 - share) * angle).sin() / angle.sin() * a + (share * angle).sin() / angle.sin() * b).to(a.dtype)


class NoiseBetween:
    """Streams of noise between those of two seeds: the i-th at ``shares[i]`` of the way, in all its draws."""

    def __init__(self, seeds: tuple[int, int], shares: Sequence[float], device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.ends = PerImageNoise(seeds)
        self.shares = torch.tensor(shares, dtype=torch.float64)

    def randn(self, image_shape: Sequence[int]) -> Tensor:
        """The next noise of every image: (len(shares), *image_shape), float32."""
        a, b = self.ends.randn(image_shape)
        return slerp(a, b, self.shares).to(self.device)

    def randn_like(self, x: Tensor) -> Tensor:
        """The same, for a batch x (len(shares), C, H, W)."""
        return self.randn(x.shape[1:])
