"""What all image sets share: their shape, their splits, and their loaders."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any, Literal

import lightning as L
import torch

from ddpm_lightning.data.packing import ON_ERROR, pack
from ddpm_lightning.data.preprocessing import Preprocessing
from ddpm_lightning.data.resident import EvaluationLoader, LabelledImages, TrainingLoader, batches_per_epoch
from ddpm_lightning.data.sources import Source

Split = Literal["train", "val"]


class ImageDataModule(L.LightningDataModule, ABC):
    """Serves batches ``(images (B, C, H, W) float32 in [-1, 1], labels (B,) int64)``.

    A data set is a subclass with one or two methods: ``load`` gives a split as uint8 arrays of ``image_shape``, and
    Lightning's ``prepare_data`` leaves its files under ``root``, if there is something to fetch.

    ``image_size`` is H = W, or (H, W). ``num_classes`` is None where there are no labels. ``horizontal_flip``
    mirrors half of the training images. ``eval_batch_size`` is the batch of the held-out loss. ``device`` is where the
    training images are kept: "cpu", "cuda", ..., or "auto" for the accelerator that trains, if they take at most a
    quarter of its free memory; there, no batch is copied from the host. ``overfit``: that many training images alone,
    spread evenly over the split, are both splits.
    """

    needs_root = True  # whether there are files below root
    crop = "none"  # what is cut from the set's own images

    def __init__(
        self,
        root: str,
        image_size: int | Sequence[int],
        channels: int,
        batch_size: int,
        num_classes: int | None = None,
        horizontal_flip: bool = False,
        eval_batch_size: int = 256,
        seed: int = 0,
        device: str = "auto",
        overfit: int | None = None,
    ) -> None:
        super().__init__()
        height, width = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        if not (8 <= height <= 256 and 8 <= width <= 256):
            raise ValueError(f"image_size must lie in [8, 256], got {image_size}")
        if channels not in (1, 3):
            raise ValueError(f"channels must be 1 or 3, got {channels}")
        if seed < 0:
            raise ValueError(f"seed must be at least 0, got {seed}")
        for name, value in (("batch_size", batch_size), ("eval_batch_size", eval_batch_size), ("overfit", overfit)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        try:
            torch.device("cpu" if device == "auto" else device)
        except RuntimeError as error:
            raise ValueError(f"device must be auto, cpu, cuda or another device of torch, got {device}") from error
        self.root = Path(root).expanduser()
        self.image_shape = (channels, height, width)
        self.batch_size = batch_size
        self.num_classes = num_classes
        self.horizontal_flip = horizontal_flip
        self.eval_batch_size = eval_batch_size
        self.seed = seed
        self.device = device
        self.overfit = overfit
        self._splits: dict[Split, LabelledImages] = {}

    @abstractmethod
    def load(self, split: Split) -> LabelledImages:
        """The split's images, uint8 (N, *image_shape), and labels, int64 (N,)."""

    @property
    def class_names(self) -> list[str] | None:
        """A name for each label, or None where there are no labels."""
        return None if self.num_classes is None else [str(label) for label in range(self.num_classes)]

    def split(self, split: Split) -> LabelledImages:
        """The split's arrays, loaded at the first call."""
        if split not in self._splits:
            images, labels = self._splits[split] = self._load(split)
            if tuple(images.shape[1:]) != self.image_shape:
                found = tuple(images.shape[1:])
                raise ValueError(f"image_size and channels must be those of the set, {found}, got {self.image_shape}")
            if (
                self.num_classes is not None
                and len(labels)
                and not 0 <= labels.min() <= labels.max() < self.num_classes
            ):
                raise ValueError(f"num_classes must be above the largest label, {labels.max()}, got {self.num_classes}")
        return self._splits[split]

    def _load(self, split: Split) -> LabelledImages:
        if self.overfit is None:
            return self.load(split)
        images, labels = self.load("train")
        if self.overfit > len(images):
            raise ValueError(f"overfit must lie in [1, {len(images)}], the training images, got {self.overfit}")
        chosen = torch.arange(self.overfit) * len(images) // self.overfit
        return LabelledImages(images[chosen], labels[chosen])

    def file_format(self, split: Split) -> str:
        """In what its images were stored: "array" for bytes as they are, or the endings of their files."""
        return "array"

    def fingerprint(self, split: Split) -> str:
        """sha256 over a split's very pixels and labels, as training sees them before flips."""
        images, labels = self.split(split)
        digest = hashlib.sha256(repr(tuple(images.shape)).encode())
        for part in (*images.split(4096), labels):
            digest.update(part.numpy().tobytes())
        return digest.hexdigest()

    @property
    def num_batches(self) -> int:
        """Of an epoch, on each device."""
        accumulate = 1 if self.trainer is None else self.trainer.accumulate_grad_batches
        return batches_per_epoch(len(self.split("train").images), self.batch_size, self._rank()[1], accumulate)

    def train_dataloader(self) -> TrainingLoader:
        rank, world_size = self._rank()
        accumulate = 1 if self.trainer is None else self.trainer.accumulate_grad_batches
        data = self.split("train")
        device = self._home(data)
        data = LabelledImages(data.images.to(device), data.labels.to(device))
        return TrainingLoader(data, self.batch_size, self.seed, self.horizontal_flip, rank, world_size, accumulate)

    def val_dataloader(self) -> EvaluationLoader:
        return EvaluationLoader(self.split("val"), self.eval_batch_size, *self._rank())

    def _rank(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def _home(self, data: LabelledImages) -> torch.device:
        """Where the training images are kept."""
        if self.device != "auto":
            return torch.device(self.device)
        device = torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device
        if device.type == "cuda" and data.images.nbytes <= torch.cuda.mem_get_info(device)[0] / 4:
            return device
        return torch.device("cpu")


class PackedDataModule(ImageDataModule):
    """A set of image files, decoded once and then mapped into memory from ``cache``: None for ``<root>/.packed``.

    A data set is a subclass with ``sources``. ``crop`` is a name of ``preprocessing.CROPS``. ``on_error`` is "stop",
    which refuses broken images, or "skip", which leaves them out and says how many.
    """

    def __init__(self, root: str, cache: str | None = None, crop: str = "none", on_error: str = "stop", **kwargs: Any):
        super().__init__(root=root, **kwargs)
        if on_error not in ON_ERROR:
            raise ValueError(f"on_error must be one of {', '.join(ON_ERROR)}, got {on_error}")
        self.cache = Path(cache).expanduser() if cache else self.root / ".packed"
        self.crop = crop
        self.preprocessing = Preprocessing(self.image_shape, crop)
        self.on_error = on_error

    @abstractmethod
    def sources(self, split: Split) -> tuple[list[Source], list[int]]:
        """The split's images in a fixed order, and their labels: all 0 where there are no classes."""

    def file_format(self, split: Split) -> str:
        endings = {PurePath(str(source)).suffix.lower()[1:].replace("jpg", "jpeg") for source in self.sources(split)[0]}
        return "+".join(sorted(endings - {""})) or "array"

    def load(self, split: Split) -> LabelledImages:
        sources, labels = self.sources(split)
        if not sources:
            raise ValueError(f"root must hold images of the {split} split, found none in {self.root}")
        packed = pack(sources, self.preprocessing, self.cache, self.on_error)
        if packed.broken:
            print(f"{len(packed.broken)} of {len(sources)} images of the {split} split are broken, and left out")
        broken = set(packed.broken)
        kept = [label for i, label in enumerate(labels) if i not in broken]
        return LabelledImages(torch.from_numpy(packed.images), torch.tensor(kept))
