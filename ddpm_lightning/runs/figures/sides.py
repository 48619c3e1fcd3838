"""The two sides of a comparison: a model's samples, a split of a data set, a folder, or an array."""

import hashlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ddpm_lightning.data.base import ImageDataModule, Split
from ddpm_lightning.generation import generate
from ddpm_lightning.images import save_png, to_uint8
from ddpm_lightning.runs.refusal import Refusal
from ddpm_lightning.runs.sampling import Session, block_of, settings

GRID = "grid.png"  # that mode=samples writes beside the images
JPEG = (".jpg", ".jpeg")
MODES = {"L": 1, "RGB": 3}
SPLITS: tuple[Split, ...] = ("train", "val")


class Side(ABC):
    """Images by index: (C, H, W) uint8. ``described`` holds all that shapes them, plain values."""

    indices: Sequence[int]
    shape: tuple[int, ...]
    labels: list[int] | None = None  # of the images, in their order
    class_names: list[str] | None = None
    jpeg = False  # whether they come from JPEG files

    @property
    @abstractmethod
    def described(self) -> dict[str, Any]: ...

    @abstractmethod
    def images(self, indices: Sequence[int]) -> Tensor:
        """(B, C, H, W) uint8."""


class InMemory(Side):
    """A split of a data set, or the content of an .npz file."""

    def __init__(self, name: str, images: Tensor, labels: list[int] | None, sha256: str, kind: str = "array") -> None:
        self.all, self.labels, self.shape = images, labels, tuple(images.shape[1:])
        self.indices = range(len(images))
        self.jpeg = "jpeg" in kind
        self._described = {"set": name, "count": len(images), "shape": list(self.shape), "format": kind}
        self._described["sha256"] = sha256

    @property
    def described(self) -> dict[str, Any]:
        return self._described

    def images(self, indices: Sequence[int]) -> Tensor:
        return self.all[list(indices)]


def split_of(data: ImageDataModule, split: Split) -> InMemory:
    """As the network is trained on it, but never mirrored."""
    images, labels = data.split(split)
    crop = "" if data.crop == "none" else f" {data.crop}"
    side = InMemory(
        f"{type(data).__name__} {split}{crop}",
        images,
        None if data.num_classes is None else labels.tolist(),
        data.fingerprint(split),
        data.file_format(split),
    )
    side.class_names = data.class_names
    return side


def array_of(key: str, path: Path) -> InMemory:
    """An .npz file with uint8 images (N, H, W, C), and labels (N,) if it has any."""
    try:
        with np.load(path) as arrays:
            names = [n for n in ("images", "samples", "arr_0") if n in arrays]
            images = arrays[names[0]] if names else np.empty(0)
            found = [arrays[n] for n in ("labels", "label", "arr_1") if n in arrays]
            labels = found[0].tolist() if found and found[0].shape == images.shape[:1] else None
    except (OSError, ValueError, EOFError) as error:
        raise Refusal(f"{key}={path}: must be an .npz file of arrays ({error})") from error
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
        has = f"{images.dtype} {images.shape}" if names else "none of these"
        raise Refusal(f"{key}={path}: must hold images, samples or arr_0, uint8 (N, H, W, 1 or 3), has {has}")
    digest = hashlib.sha256(images.tobytes()).hexdigest()
    return InMemory(path.name, torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), labels, digest, "npz")


class Folder(Side):
    """All images below a folder; those of folders in it have them as their classes."""

    def __init__(self, key: str, path: Path) -> None:
        self.key = key
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
        self.jpeg = "jpeg" in kinds
        parents = [p.relative_to(path).parts[0] if p.parent != path else None for p in self.files]
        if None not in parents:
            self.class_names = sorted({str(name) for name in parents})
            self.labels = [self.class_names.index(str(name)) for name in parents]
        digest = hashlib.sha256()
        for file in self.files:
            digest.update(file.name.encode() + hashlib.sha256(file.read_bytes()).digest())
        kind = "+".join(sorted(kinds))
        self._described = {"set": path.name, "count": len(self.files), "shape": list(self.shape), "format": kind}
        self._described["sha256"] = digest.hexdigest()

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


class Samples(Side):
    """A model's images, by seed. With ``folder`` each is written there as well, rounded as it is scored."""

    def __init__(self, session: Session, indices: Sequence[int], folder: Path | None = None) -> None:
        self.session, self.indices, self.folder = session, indices, folder
        self.shape = session.shape
        self.labels = self.labels_of(indices)
        self.class_names = session.loaded.class_names
        self.on_move: Callable[[int], None] = lambda images: None

    def labels_of(self, indices: Sequence[int]) -> list[int] | None:
        """Every class in turn."""
        classes = self.session.num_classes
        return None if classes is None else [seed % classes for seed in indices]

    @property
    def described(self) -> dict[str, Any]:
        """But for the seeds, as an image depends on its own alone."""
        classes = self.session.num_classes
        labels = None if classes is None else f"image of seed i has label i mod {classes}"
        return {**settings(self.session), "labels": labels, "device": self.session.device.type}

    def path_of(self, seed: int) -> Path | None:
        return None if self.folder is None else self.folder / f"seed-{seed:06d}.png"

    def unwritten(self) -> list[int]:
        """Seeds whose file is asked for, and not there."""
        return [seed for seed in self.indices if (path := self.path_of(seed)) is not None and not path.exists()]

    def images(self, indices: Sequence[int]) -> Tensor:
        session = self.session
        batches = generate(
            session.denoiser,
            session.sampler,
            session.shape,
            indices,
            self.labels_of(indices),
            session.cfg.batch_size,
            session.device,
            self.on_move,
            block_of(session.device),
        )
        images = to_uint8(torch.cat(list(batches))).cpu()
        for seed, image in zip(indices, images, strict=True):
            if (path := self.path_of(seed)) is not None:
                save_png(image, path)
        return images


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
