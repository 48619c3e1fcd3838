"""An image file -> the pixels that the network sees, and that evaluation compares with."""

from typing import IO, Any

import numpy as np
from PIL import Image, ImageOps

# Published CelebA figures differ by the box that is cut out of the 178x218 pixels: (left, top, right, bottom)
CROPS: dict[str, tuple[int, int, int, int] | None] = {
    "none": None,
    "center178": (0, 20, 178, 198),  # the largest square; torchvision's CenterCrop(178)
    "center140": (19, 39, 159, 179),  # Song et al. (2021), score_sde
    "box148": (15, 40, 163, 188),  # Larsen et al. (2016) and many since
    "box128": (25, 57, 153, 185),  # Karras et al. (2018); Song et al. (2021), DDIM
}


class Preprocessing:
    """Turn upright, put on white where transparent, cut the named box, resize with antialiasing, cut the centre.

    ``image_shape`` is (C, H, W). Deterministic, and described by ``description``.
    """

    def __init__(self, image_shape: tuple[int, int, int], crop: str = "none") -> None:
        if crop not in CROPS:
            raise ValueError(f"crop must be one of {', '.join(CROPS)}, got {crop}")
        self.image_shape = image_shape
        self.box = CROPS[crop]
        self.description: dict[str, Any] = {
            "version": 1,
            "shape": list(image_shape),
            "crop": crop,
            "box": self.box and list(self.box),
            "resize": "bicubic, antialiased, centre",
        }

    def __call__(self, file: IO[bytes]) -> np.ndarray:
        """Decode a file as (C, H, W) uint8. Raises OSError, ValueError or SyntaxError for a broken one."""
        channels, height, width = self.image_shape
        with Image.open(file) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.mode.startswith("I"):  # 16 bits; Pillow's own conversion would clip them at 255
                image = Image.fromarray((np.asarray(image).astype(np.uint32) // 257).astype(np.uint8))
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            image = image.convert("L" if channels == 1 else "RGB")
            if self.box:
                if self.box[2] > image.width or self.box[3] > image.height:
                    raise ValueError(f"{image.width}x{image.height} pixels do not hold the crop {self.box}")
                image = image.crop(self.box)
            image = ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
        return np.asarray(image).reshape(height, width, channels).transpose(2, 0, 1)
