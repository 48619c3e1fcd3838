"""Images in [-1, 1] as bytes, grids and files."""

import os
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

LEGIBLE_SIDE = 48  # pixels: smaller images are enlarged to at least this in grids
GRID_PADDING = 2  # pixels around each image of a grid


def to_uint8(images: Tensor) -> Tensor:
    """[-1, 1] -> 0..255, rounded to the nearest, values outside clamped."""
    return (images.clamp(-1, 1) * 127.5 + 127.5).round().to(torch.uint8)


def to_unit(images: Tensor) -> Tensor:
    """[-1, 1] -> [0, 1], values outside clamped."""
    return (images.clamp(-1, 1) + 1) / 2


def enlargement(width: int) -> int:
    """The factor by which grids enlarge images of this width."""
    return max(1, -(-LEGIBLE_SIDE // width))


def grid(images: Tensor, columns: int) -> Tensor:
    """Images (N, C, H, W) uint8 as one picture (3, height, width) uint8, small ones enlarged by a whole factor."""
    factor = enlargement(images.shape[-1])
    enlarged = images.repeat_interleave(factor, -1).repeat_interleave(factor, -2)
    return make_grid(enlarged, nrow=columns, padding=GRID_PADDING, pad_value=64)


def save_png(image: Tensor, path: Path) -> None:
    """Write an image (C, H, W) uint8, whole or not at all, with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = image.permute(1, 2, 0).cpu().numpy()
    part = path.with_name(f".{path.name}.part")
    Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array).save(part, format="PNG")
    os.replace(part, path)
