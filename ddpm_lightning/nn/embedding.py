"""Times and labels as vectors."""

import math

import torch
from torch import Tensor, nn


class TimeEmbedding(nn.Module):
    """Sines and cosines of the network time, then an MLP.  Vaswani et al. (2017), sec. 3.5; Ho et al. (2020), app. B.

    Times (B,) -> (B, embedding_channels). Wavelengths run geometrically from 2 pi to 20 000 pi.
    """

    frequencies: Tensor

    def __init__(self, channels: int, embedding_channels: int) -> None:
        super().__init__()
        half = channels // 2
        exponent = torch.arange(half, dtype=torch.float64) / max(half - 1, 1)
        self.register_buffer("frequencies", torch.exp(-math.log(10_000) * exponent).float(), persistent=False)
        self.mlp = nn.Sequential(
            nn.Linear(2 * half, embedding_channels), nn.SiLU(), nn.Linear(embedding_channels, embedding_channels)
        )

    def forward(self, times: Tensor) -> Tensor:
        angles = times.float()[:, None] * self.frequencies
        return self.mlp(torch.cat([angles.sin(), angles.cos()], dim=1))


class ClassEmbedding(nn.Embedding):
    """A vector for each class, and one for "no class", whose index is ``num_classes``.

    Labels (B,), or None for no class throughout -> (B, embedding_channels).
    """

    def __init__(self, num_classes: int, embedding_channels: int) -> None:
        super().__init__(num_classes + 1, embedding_channels)
        self.num_classes = num_classes

    def embed(self, label: Tensor | None, batch_size: int) -> Tensor:
        if label is None:
            return self.weight[self.num_classes].expand(batch_size, -1)
        return self(label)
