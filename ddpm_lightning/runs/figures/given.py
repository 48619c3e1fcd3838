"""Images that a user has: a folder, or an array."""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ddpm_lightning.data.base import ImageDataModule, Split
from ddpm_lightning.evaluation.store import read_arrays
from ddpm_lightning.runs.figures.sides import InMemory, Side, split_of
from ddpm_lightning.runs.refusal import Refusal

GRID = "grid.png"  # that mode=samples writes beside the images
JPEG = (".jpg", ".jpeg")
MODES = {"L": 1, "RGB": 3}
SPLITS: tuple[Split, ...] = ("train", "val")


def array_of(key: str, path: Path) -> InMemory:
    """An .npz file with uint8 images (N, H, W, C), and labels (N,) if it has any."""
    try:
        arrays = read_arrays(path)
    except ValueError as mistake:
        raise Refusal(f"{key}={path}: must be an .npz file of arrays ({mistake})") from mistake
    names = [n for n in ("images", "samples", "arr_0") if n in arrays]
    images = arrays[names[0]] if names else np.empty(0)
    given = [arrays[n] for n in ("labels", "label", "arr_1") if n in arrays]
    fine = bool(given) and given[0].shape == images.shape[:1] and np.issubdtype(given[0].dtype, np.integer)
    labels = given[0].tolist() if fine else None
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
        has = f"{images.dtype} {images.shape}" if names else "none of these"
        raise Refusal(f"{key}={path}: must hold images, samples or arr_0, uint8 (N, H, W, 1 or 3), has {has}")
    digest = hashlib.sha256(images.tobytes()).hexdigest()
    return InMemory(path.name, torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), labels, digest, "npz")


class Folder(Side):
    """All images below a folder; those of folders in it have them as their classes."""

    def __init__(self, key: str, path: Path) -> None:
        self.key = key
        self.folders: list[str] = []  # of the files, if none is outside of them
        endings = Image.registered_extensions()
        files = sorted(p for p in path.rglob("*") if p.suffix.lower() in endings and p.name != GRID)
        self.files = [p for p in files if not any(part.startswith(".") for part in p.relative_to(path).parts)]
        if not self.files:
            raise Refusal(f"{key}={path}: must hold images, has none")
        self.indices = range(len(self.files))
        shapes = Counter(map(self._shape, self.files))
        if len(shapes) > 1:
            common = shapes.most_common(1)[0][0]
            other = next(p for p in self.files if self._shape(p) != common)
            sizes = ", ".join(f"{n} of {'x'.join(map(str, shape))}" for shape, n in shapes.most_common(3))
            raise Refusal(f"{key}={path}: must hold images of one size, has {sizes}, such as {other.name}")
        self.shape = next(iter(shapes))
        kinds = {"jpeg" if p.suffix.lower() in JPEG else p.suffix.lower()[1:] for p in self.files}
        parents = [p.relative_to(path).parts[0] if p.parent != path else None for p in self.files]
        if None not in parents:
            self.folders = [str(name) for name in parents]
            self.renumber(sorted(set(self.folders)))
        digest = hashlib.sha256()
        for file in self.files:
            digest.update(str(file.relative_to(path)).encode() + hashlib.sha256(file.read_bytes()).digest())
        kind = "+".join(sorted(kinds))
        self._described = {"set": path.name, "count": len(self.files), "shape": list(self.shape), "format": kind}
        self._described["sha256"] = digest.hexdigest()

    def renumber(self, names: list[str] | None) -> None:
        if self.folders:
            known = names is not None and set(self.folders) <= set(names)
            self.class_names = names if known else None
            self.labels = [names.index(self.folders[i]) for i in self.indices] if known and names else None

    def _shape(self, path: Path) -> tuple[int, ...]:
        """By the file's header alone."""
        try:
            with Image.open(path) as image:
                channels = MODES.get("RGB" if image.mode == "P" else image.mode)
                if channels is None:
                    raise Refusal(f"{self.key}: must hold 8-bit images, grey or RGB; {path} is of kind {image.mode}")
                return (channels, image.height, image.width)
        except (OSError, ValueError, SyntaxError) as error:
            raise Refusal(f"{self.key}: {path} can't be read as an image ({error})") from error

    @property
    def described(self) -> dict[str, Any]:
        return self._described

    def images(self, indices: Sequence[int]) -> Tensor:
        arrays = []
        for index in indices:
            try:
                with Image.open(self.files[index]) as image:
                    array = np.array(image.convert("RGB") if image.mode == "P" else image)
            except (OSError, ValueError, SyntaxError) as error:
                raise Refusal(f"{self.key}: {self.files[index]} can't be read as an image ({error})") from error
            arrays.append(array[None] if array.ndim == 2 else array.transpose(2, 0, 1))
        return torch.from_numpy(np.stack(arrays))


def given_side(key: str, value: str, data: Callable[[], ImageDataModule]) -> Side:
    """A split of the data set by its name, a folder, or an .npz file. Raises Refusal."""
    if value in SPLITS:
        return split_of(data(), value)
    path = Path(value).expanduser()
    if path.is_dir():
        return Folder(key, path)
    if path.suffix == ".npz" and path.is_file():
        return array_of(key, path)
    raise Refusal(f"{key}={value}: must be train, val, a folder of images, or an .npz file")
