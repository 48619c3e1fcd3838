"""The two sides of a comparison: a model's samples, a split of a data set, a folder, or an array."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddpm_lightning.data.base import ImageDataModule, Split
from ddpm_lightning.generation import generate
from ddpm_lightning.images import save_png, to_uint8
from ddpm_lightning.runs.sampling import Session, block_of, sampling_context, settings


class Side(ABC):
    """Images by index: (C, H, W) uint8. ``described`` holds all that shapes them, plain values."""

    indices: Sequence[int]
    shape: tuple[int, ...]
    labels: list[int] | None = None  # of the images, in their order
    class_names: list[str] | None = None

    @property
    @abstractmethod
    def described(self) -> dict[str, Any]: ...

    @abstractmethod
    def images(self, indices: Sequence[int]) -> Tensor:
        """(B, C, H, W) uint8."""

    def draw(self, count: int, seed: int) -> None:
        """Keep so many of the images, drawn by the seed, as many sets are sorted by class."""
        order = torch.randperm(len(self.indices), generator=torch.Generator().manual_seed(seed))
        kept = order[:count].sort().values.tolist()
        self.described.update({"drawn": count, "draw_seed": seed})
        self.labels = None if self.labels is None else [self.labels[i] for i in kept]
        self.indices = [self.indices[i] for i in kept]

    def renumber(self, names: list[str] | None) -> None:  # noqa: B027 - as most have numbers alone
        """Give the classes of folders the numbers that they have among ``names``; none if one is unknown there."""

    def unobserved(self) -> "Side":
        """The same images, made without leaving a trace."""
        return self


class InMemory(Side):
    """A split of a data set, or the content of an .npz file."""

    def __init__(self, name: str, images: Tensor, labels: list[int] | None, sha256: str, kind: str = "array") -> None:
        self.all, self.labels, self.shape = images, labels, tuple(images.shape[1:])
        self.indices = range(len(images))
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
        with sampling_context(session):  # for the samples alone: features are in float32, as those of real images
            images = self._draw(indices)
        for seed, image in zip(indices, images, strict=True):
            if (path := self.path_of(seed)) is not None:
                save_png(image, path)
        return images

    def _draw(self, indices: Sequence[int]) -> Tensor:
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
        return to_uint8(torch.cat(list(batches))).cpu()

    def unobserved(self) -> "Samples":
        """The same, written nowhere and without a progress bar."""
        return Samples(self.session, self.indices)
