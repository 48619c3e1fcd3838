"""The U-Net of DDPM and its successors."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ddpm_lightning.nn.blocks import (
    TIME_CONDITIONINGS,
    Attention,
    Downsample,
    ResBlock,
    Upsample,
    group_norm,
    zero_init,
)
from ddpm_lightning.nn.embedding import ClassEmbedding, TimeEmbedding


class ResAttention(nn.Module):
    """A residual block, then attention if ``num_heads`` is given.

    On the way up the block sees the features ``skip`` of the way down, too. ``checkpointing`` recomputes all this, the
    features' concatenation included, in the backward pass, for less memory.
    """

    def __init__(self, block: ResBlock, channels: int, num_heads: int | None, checkpointing: bool) -> None:
        super().__init__()
        self.block = block
        self.attention = nn.Identity() if num_heads is None else Attention(channels, num_heads)
        self.checkpointing = checkpointing

    def forward(self, x: Tensor, embedding: Tensor, skip: Tensor | None = None) -> Tensor:
        if self.checkpointing and self.training:
            return checkpoint(self._forward, x, embedding, skip, use_reentrant=False)
        return self._forward(x, embedding, skip)

    def _forward(self, x: Tensor, embedding: Tensor, skip: Tensor | None) -> Tensor:
        if skip is not None:
            x = torch.cat([x, skip], dim=1)
        return self.attention(self.block(x, embedding))


class UNet(nn.Module):
    """Images (B, C, H, W), network times (B,) in 0..T-1 and labels (B,) or None -> an output like the images.

    Ho et al. (2020), app. B; ``time_conditioning="film"`` and several heads after Dhariwal & Nichol (2021).

    - ``image_size``: H = W, or (H, W); each divisible by 2^(levels - 1).
    - ``channel_mults``: channels of each level as multiples of ``base_channels``; the resolution halves in between.
    - ``attention_resolutions``: the sizes (of the longer side, in pixels) at which attention follows each block.
    - ``num_heads``, or ``head_channels``, the width of each head, which takes precedence if given.
    - ``num_classes``: None for a network without labels; otherwise a null class is added, with that index.
    - ``checkpointing``: recompute all stages but the middle's last block in the backward pass, for less memory.
    - ``learned_variance``: twice the output channels, the second half for the variance.  Nichol & Dhariwal (2021).
    - ``channels_last``: the activations' order in memory; None for what is faster, as measured: not in bf16 on CPUs.

    Raises ValueError for combinations that do not fit together.
    """

    def __init__(
        self,
        image_size: int | Sequence[int],
        channels: int = 3,
        base_channels: int = 128,
        channel_mults: Sequence[int] = (1, 2, 2, 2),
        num_res_blocks: int = 2,
        attention_resolutions: Sequence[int] = (16,),
        num_heads: int = 1,
        head_channels: int | None = None,
        dropout: float = 0.1,
        time_conditioning: str = "additive",
        num_classes: int | None = None,
        checkpointing: bool = False,
        learned_variance: bool = False,
        channels_last: bool | None = None,
    ) -> None:
        super().__init__()
        size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        _check(
            size,
            base_channels,
            channel_mults,
            num_res_blocks,
            attention_resolutions,
            dropout,
            time_conditioning,
            num_classes,
        )
        if not isinstance(channels_last, bool | None):
            raise ValueError(f"channels_last must be true, false or null, got {channels_last}")
        self.num_classes = num_classes
        self.learned_variance = learned_variance
        self.channels_last = channels_last
        width = 4 * base_channels

        def heads(channels: int, level: int) -> int | None:
            if max(size) >> level not in attention_resolutions:
                return None
            return _num_heads(channels, num_heads, head_channels)

        def block(in_channels: int, out_channels: int) -> ResBlock:
            return ResBlock(in_channels, out_channels, width, dropout, time_conditioning == "film")

        def stage(in_channels: int, out_channels: int, num_heads: int | None) -> ResAttention:
            return ResAttention(block(in_channels, out_channels), out_channels, num_heads, checkpointing)

        self.time_embedding = TimeEmbedding(base_channels, width)
        self.class_embedding = None if num_classes is None else ClassEmbedding(num_classes, width)
        self.stem = nn.Conv2d(channels, base_channels, 3, padding=1)

        levels = range(len(channel_mults))
        current = base_channels
        skips = [current]
        self.down = nn.ModuleList()
        for level in levels:
            out = base_channels * channel_mults[level]
            for _ in range(num_res_blocks):
                self.down.append(stage(current, out, heads(out, level)))
                current = out
                skips.append(current)
            if level != levels[-1]:
                self.down.append(Downsample(current))
                skips.append(current)

        self.middle = nn.ModuleList(
            [
                stage(current, current, _num_heads(current, num_heads, head_channels)),
                block(current, current),
            ]
        )

        self.up = nn.ModuleList()
        for level in reversed(levels):
            out = base_channels * channel_mults[level]
            for _ in range(num_res_blocks + 1):
                self.up.append(stage(current + skips.pop(), out, heads(out, level)))
                current = out
            if level != 0:
                self.up.append(Upsample(current))

        last = nn.Conv2d(current, 2 * channels if learned_variance else channels, 3, padding=1)
        self.head = nn.Sequential(group_norm(current), nn.SiLU(), zero_init(last))

    def forward(self, x: Tensor, times: Tensor, label: Tensor | None = None) -> Tensor:
        embedding = self.time_embedding(times)
        if self.class_embedding is not None:
            embedding = embedding + self.class_embedding.embed(label, len(x))
        order = self._order(x)
        # what follows keeps the order; of images with one channel torch can't tell which they have
        x = self.stem(x.contiguous(memory_format=order)).contiguous(memory_format=order)
        skips = [x]
        for module in self.down:
            x = module(x) if isinstance(module, Downsample) else module(x, embedding)
            skips.append(x)
        for module in self.middle:
            x = module(x, embedding)
        for module in self.up:
            x = module(x) if isinstance(module, Upsample) else module(x, embedding, skips.pop())
        return self.head(x)

    def _order(self, x: Tensor) -> torch.memory_format:
        """The memory format for such images."""
        last = self.channels_last
        if last is None:
            # torch's group norm is 17 times slower in bf16 with channels last on a CPU
            last = x.device.type == "cuda" or (x.device.type == "cpu" and not torch.is_autocast_enabled("cpu"))
        return torch.channels_last if last else torch.contiguous_format


def _num_heads(channels: int, num_heads: int, head_channels: int | None) -> int:
    """Heads of an attention of this width, checked."""
    if head_channels is not None:
        if head_channels < 1 or channels % head_channels:
            raise ValueError(
                f"head_channels must divide the {channels} channels of each attention, got {head_channels}"
            )
        return channels // head_channels
    if num_heads < 1 or channels % num_heads:
        raise ValueError(f"num_heads must divide the {channels} channels of each attention, got {num_heads}")
    return num_heads


def _check(
    size: tuple[int, ...],
    base_channels: int,
    channel_mults: Sequence[int],
    num_res_blocks: int,
    attention_resolutions: Sequence[int],
    dropout: float,
    time_conditioning: str,
    num_classes: int | None,
) -> None:
    """Raise ValueError with the value and what is allowed."""
    if base_channels < 2 or base_channels % 2:
        raise ValueError(f"base_channels must be even and at least 2, got {base_channels}")
    if not channel_mults or min(channel_mults) < 1:
        raise ValueError(f"channel_mults must be a list of integers of at least 1, got {list(channel_mults)}")
    if num_res_blocks < 1:
        raise ValueError(f"num_res_blocks must be at least 1, got {num_res_blocks}")
    factor = 2 ** (len(channel_mults) - 1)
    if len(size) != 2 or any(side < factor or side % factor for side in size):
        raise ValueError(
            f"image_size must be divisible by {factor}, as there are {len(channel_mults)} levels of channel_mults,"
            f" got {'x'.join(map(str, size))}"
        )
    occurring = [max(size) >> level for level in range(len(channel_mults))]
    for resolution in attention_resolutions:
        if resolution not in occurring:
            raise ValueError(
                f"attention_resolutions must be among {occurring}, the sizes of the levels,"
                f" got {list(attention_resolutions)}"
            )
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must lie in [0, 1), got {dropout}")
    if time_conditioning not in TIME_CONDITIONINGS:
        raise ValueError(f"time_conditioning must be one of {', '.join(TIME_CONDITIONINGS)}, got {time_conditioning}")
    if num_classes is not None and num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, or null for none, got {num_classes}")
