"""What all image sets share: their shape, their splits, and their loaders."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import lightning as L

from ddpm_lightning.data.resident import EvaluationLoader, LabelledImages, TrainingLoader

Split = Literal["train", "val"]


class ImageDataModule(L.LightningDataModule, ABC):
    """Serves batches ``(images (B, C, H, W) float32 in [-1, 1], labels (B,) int64)``.

    A data set is a subclass with one or two methods: ``load`` gives a split as uint8 arrays of ``image_shape``, and
    Lightning's ``prepare_data`` leaves its files under ``root``, if there is something to fetch.

    ``image_size`` is H = W, or (H, W). ``num_classes`` is None where there are no labels. ``horizontal_flip``
    mirrors half of the training images. ``eval_batch_size`` is the batch of the held-out loss.
    """

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
    ) -> None:
        super().__init__()
        height, width = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        if not (8 <= height <= 256 and 8 <= width <= 256):
            raise ValueError(f"image_size must lie in [8, 256], got {image_size}")
        if channels not in (1, 3):
            raise ValueError(f"channels must be 1 or 3, got {channels}")
        for name, value in (("batch_size", batch_size), ("eval_batch_size", eval_batch_size)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.root = Path(root).expanduser()
        self.image_shape = (channels, height, width)
        self.batch_size = batch_size
        self.num_classes = num_classes
        self.horizontal_flip = horizontal_flip
        self.eval_batch_size = eval_batch_size
        self.seed = seed
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
            images, labels = self._splits[split] = self.load(split)
            if tuple(images.shape[1:]) != self.image_shape:
                found = tuple(images.shape[1:])
                raise ValueError(f"image_size and channels must be those of the set, {found}, got {self.image_shape}")
            if (
                self.num_classes is not None
                and len(labels)
                and not 0 <= int(labels.min()) <= int(labels.max()) < self.num_classes
            ):
                raise ValueError(
                    f"num_classes must be above the largest label, {int(labels.max())}, got {self.num_classes}"
                )
        return self._splits[split]

    def train_dataloader(self) -> TrainingLoader:
        rank, world_size = self._rank()
        accumulate = 1 if self.trainer is None else self.trainer.accumulate_grad_batches
        return TrainingLoader(
            self.split("train"), self.batch_size, self.seed, self.horizontal_flip, rank, world_size, accumulate
        )

    def val_dataloader(self) -> EvaluationLoader:
        return EvaluationLoader(self.split("val"), self.eval_batch_size, *self._rank())

    def _rank(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)
