"""Images in [-1, 1] as bytes, grids and files."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.utils import make_grid

LEGIBLE_SIDE = 48  # pixels: smaller images are enlarged to at least this in grids
CAPTION_HEIGHT = 14  # pixels
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


def grid(images: Tensor, columns: int, captions: Sequence[str] | None = None) -> Tensor:
    """Images (N, C, H, W) uint8 as one picture (3, height, width) uint8, small ones enlarged by a whole factor.

    ``captions``, one for each image, stand above them; where every column has one caption, above the columns.
    """
    factor = enlargement(images.shape[-1])
    enlarged = images.repeat_interleave(factor, -1).repeat_interleave(factor, -2)
    if captions is None:
        return _tiled(enlarged, columns)
    strips = [caption_strip(caption, enlarged.shape[-1]) for caption in captions]
    if all(caption == captions[i % columns] for i, caption in enumerate(captions)):
        head = _tiled(torch.stack(strips[:columns]), columns)
        return torch.cat([head[:, :-GRID_PADDING], _tiled(enlarged, columns).cpu()], dim=1)
    return _tiled(torch.cat([torch.stack(strips), enlarged.expand(-1, 3, -1, -1).cpu()], dim=2), columns)


def _tiled(images: Tensor, columns: int) -> Tensor:
    return make_grid(images, nrow=columns, padding=GRID_PADDING, pad_value=64)


def caption_strip(text: str, width: int) -> Tensor:
    """White words on dark grey (3, CAPTION_HEIGHT, width) uint8, cut off where they don't fit."""
    strip = Image.new("RGB", (width, CAPTION_HEIGHT), (64, 64, 64))
    ImageDraw.Draw(strip).text((1, 1), text, fill=(255, 255, 255), font=ImageFont.load_default(size=10))
    return torch.from_numpy(np.array(strip)).permute(2, 0, 1)


def read_image(path: Path, image_shape: Sequence[int]) -> Tensor:
    """A picture file as a float32 image (C, H, W) in [-1, 1]. Raises ValueError if its size or colours are others.

    Grey pictures serve for colour; colour for grey does not, unless all three channels agree.
    """
    channels, height, width = image_shape
    try:
        with Image.open(path) as file:
            array = np.array(file.convert("RGB"))
    except OSError as error:
        raise ValueError(f"{path} can't be read as a picture ({error})") from error
    if array.shape[:2] != (height, width):
        raise ValueError(f"{path} must be of {height}x{width} pixels, and has {'x'.join(map(str, array.shape[:2]))}")
    image = torch.from_numpy(array).permute(2, 0, 1)
    if channels == 1:
        if not (image == image[:1]).all():
            raise ValueError(f"{path} must be grey, and is in colour")
        image = image[:1]
    return image.float() / 127.5 - 1


def save_gif(frames: Sequence[Tensor], path: Path, seconds: float) -> None:
    """Write pictures (3 or 1, H, W) uint8 as a film of that length, whole or not at all; the last one stays longer."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures = [Image.fromarray(frame.expand(3, -1, -1).permute(1, 2, 0).cpu().numpy()) for frame in frames]
    each = max(20, round(1000 * seconds / len(frames)))  # milliseconds; viewers slow down what is faster
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    lengths = [each] * (len(frames) - 1) + [each + 1000]
    pictures[0].save(part, "GIF", save_all=True, append_images=pictures[1:], duration=lengths, loop=0)
    os.replace(part, path)


def save_png(image: Tensor, path: Path) -> None:
    """Write an image (C, H, W) uint8, whole or not at all, with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = image.permute(1, 2, 0).cpu().numpy()
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array).save(part, format="PNG")
    os.replace(part, path)
