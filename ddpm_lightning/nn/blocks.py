"""The parts of the U-Net: residual blocks, attention, and changes of resolution."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MAX_GROUPS = 32
HAS_ONEDNN = torch.backends.mkldnn.is_available()
FEW_PIXELS = 1024  # of which attention's matrix of all pairs is still small beside the activations
TIME_CONDITIONINGS = ("film", "additive")


def group_norm(channels: int) -> nn.GroupNorm:
    """Normalisation over 32 groups; over fewer in narrow networks, so that a group has at least 4 channels."""
    most = max(1, min(MAX_GROUPS, channels // 4))
    return nn.GroupNorm(max(g for g in range(1, most + 1) if channels % g == 0), channels, eps=1e-6)


def zero_init(layer: nn.Conv2d) -> nn.Conv2d:
    """Start a branch at zero, so that it begins as the identity.  Ho et al. (2020)'s code; Goyal et al. (2017)."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class Pointwise(nn.Conv2d):
    """A 1x1 convolution."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        # one pixel has nothing to dilate; but for one that says so torch takes oneDNN's kernels on a CPU where it would
        # not (fp32, one thread, fewer than 16 images), and those are twice as fast
        has_kernel = HAS_ONEDNN and x.device.type == "cpu" and x.dtype != torch.float64
        return F.conv2d(x, self.weight, self.bias, dilation=2 if has_kernel else 1)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(c)) v, each (B, heads, pixels, c).  Vaswani et al. (2017), eq. 1."""
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.shape[-2] <= FEW_PIXELS and torch.is_grad_enabled():
        # in plain words, as torch's own takes 3 times as long to train there; it does not round the products of q and k
        # to bfloat16, though, and so is for all else
        return (q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)).softmax(dim=-1) @ v
    return F.scaled_dot_product_attention(q, k, v)


class ResBlock(nn.Module):
    """Norm, SiLU, convolution, twice; the embedding enters at the second norm.

    (B, in, H, W), embedding (B, E) -> (B, out, H, W). ``film``: scale and shift after the norm, Dhariwal &
    Nichol (2021), eq. 9; otherwise added before it, Ho et al. (2020), app. B.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding_channels: int,
        dropout: float,
        film: bool,
    ) -> None:
        super().__init__()
        self.film = film
        self.norm1 = group_norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.embedding = nn.Linear(embedding_channels, (2 if film else 1) * out_channels)
        self.norm2 = group_norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zero_init(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.skip = nn.Identity() if in_channels == out_channels else Pointwise(in_channels, out_channels)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        condition = self.embedding(F.silu(embedding))[:, :, None, None]
        if self.film:
            scale, shift = condition.chunk(2, dim=1)
            h = self.norm2(h) * (1 + scale) + shift
        else:
            h = self.norm2(h + condition)
        return self.skip(x) + self.conv2(self.dropout(F.silu(h)))


class Attention(nn.Module):
    """Self-attention over all pixels, added to its input: (B, C, H, W) -> the same."""

    def __init__(self, channels: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = group_norm(channels)
        self.qkv = Pointwise(channels, 3 * channels)
        self.out = zero_init(Pointwise(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        qkv = self.qkv(self.norm(x)).view(B, 3, self.num_heads, C // self.num_heads, H * W)
        q, k, v = qkv.transpose(-1, -2).unbind(1)  # each (B, heads, pixels, channels of a head)
        h = attend(q, k, v).transpose(1, 2).reshape(B, H, W, C)
        return x + self.out(h.permute(0, 3, 1, 2))


class Downsample(nn.Conv2d):
    """Half the resolution by a strided convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, stride=2, padding=1)


class Upsample(nn.Conv2d):
    """Twice the resolution by repeated pixels and a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.interpolate(x, scale_factor=2.0, mode="nearest"))
