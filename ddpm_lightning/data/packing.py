"""Image files -> one uint8 array on disk, decoded once and memory-mapped from then on."""

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from filelock import FileLock
from PIL import Image, ImageOps
from tqdm import tqdm

LISTED = 10  # broken files named in an error


def read_image(path: Path, shape: tuple[int, int, int]) -> np.ndarray:
    """Decode a file as (C, H, W) uint8: turned upright, on white where transparent, resized with antialiasing to
    cover H x W, and cut at the centre."""
    channels, height, width = shape
    with Image.open(path) as file:
        image = ImageOps.exif_transpose(file)
        if image.mode.startswith("I"):  # 16 bits; Pillow's own conversion would clip them at 255
            image = Image.fromarray((np.asarray(image).astype(np.uint32) // 257).astype(np.uint8))
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        image = image.convert("L" if channels == 1 else "RGB")
        image = ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
    return np.asarray(image).reshape(height, width, channels).transpose(2, 0, 1)


def pack(files: Sequence[Path], shape: tuple[int, int, int], folder: Path) -> np.ndarray:
    """The files as a memory-mapped array (N, C, H, W) uint8, kept in ``folder`` under a name for all that shaped it.

    Written to a temporary name first, so that an interrupted call leaves no half-made array behind.
    Raises ValueError that names broken files.
    """
    path = folder / f"{_fingerprint(files, shape)}.npy"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):  # of several ranks that start together, one packs
        if not path.exists():
            _write(files, shape, path)
    return np.load(path, mmap_mode="r")


def _write(files: Sequence[Path], shape: tuple[int, int, int], path: Path) -> None:
    part = path.with_suffix(".part")
    array = np.lib.format.open_memmap(part, mode="w+", dtype=np.uint8, shape=(len(files), *shape))
    broken: list[str] = []

    def store(i: int) -> None:
        try:
            array[i] = read_image(files[i], shape)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            broken.append(f"{files[i]} ({error})")

    try:
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow decodes outside the interpreter's lock
            for _ in tqdm(
                pool.map(store, range(len(files))),
                "Packing images",
                len(files),
                unit="images",
                leave=False,
                disable=None,
            ):
                pass
        if broken:
            raise ValueError(f"root holds {len(broken)} broken images: {', '.join(sorted(broken)[:LISTED])}")
        array.flush()
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _fingerprint(files: Sequence[Path], shape: tuple[int, int, int]) -> str:
    """A hash over names, sizes and times of the files, the target shape, and the recipe's version."""
    described = [["v1", *shape], *([str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns] for f in files)]
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()[:16]
