"""Any folder of images, with or without class folders."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ddpm_lightning.data.base import ImageDataModule, Split
from ddpm_lightning.data.packing import pack
from ddpm_lightning.data.resident import LabelledImages

HELD_OUT_NAMES = ("val", "valid", "validation", "test")


class ImageFolder(ImageDataModule):
    """Images below ``root``, resized and cut at the centre to ``image_size``, packed once into ``cache``.

    With a folder ``train`` in root, and perhaps ``val`` (or valid, validation, test), these are the splits; otherwise a
    fraction ``val_fraction`` of the images, drawn by ``seed``, is held out. Folders of a split are its classes, in
    alphabetical order; images beside each other are unlabelled. Hidden files and other kinds of file are passed over.
    """

    def __init__(
        self,
        root: str,
        cache: str | None = None,
        val_fraction: float = 0.1,
        num_classes: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(root=root, num_classes=num_classes, **kwargs)
        if not 0 < val_fraction < 1:
            raise ValueError(f"val_fraction must lie in (0, 1), got {val_fraction}")
        if not self.root.is_dir():
            raise FileNotFoundError(f"root must be a folder of images, got {root}")
        self.cache = Path(cache).expanduser() if cache else self.root / ".packed"
        self.val_fraction = val_fraction
        train = self.root / "train"
        self.folders: dict[Split, Path] = {"train": train if train.is_dir() else self.root}
        held_out = [self.root / name for name in HELD_OUT_NAMES if (self.root / name).is_dir()]
        if train.is_dir() and held_out:
            self.folders["val"] = held_out[0]
        self.classes = sorted(
            f.name for f in self.folders["train"].iterdir() if f.is_dir() and not f.name.startswith(".")
        )
        found = len(self.classes) or None
        if num_classes not in (None, found):
            raise ValueError(
                f"num_classes must be null, or {found or 'null'} as root has that many class folders, got {num_classes}"
            )
        self.num_classes = found

    @property
    def class_names(self) -> list[str] | None:
        return self.classes or None

    def load(self, split: Split) -> LabelledImages:
        files, labels = self._files(self.folders.get(split, self.folders["train"]))
        chosen: Sequence[int] = range(len(files))
        if "val" not in self.folders:
            order = np.random.default_rng(self.seed).permutation(len(files))
            held_out = max(1, round(self.val_fraction * len(files)))
            chosen = np.sort(order[:held_out] if split == "val" else order[held_out:]).tolist()
        if not chosen:
            raise ValueError(f"root must hold at least 2 images, found {len(files)} in {self.root}")
        array = pack([files[i] for i in chosen], self.image_shape, self.cache)
        # a private copy: torch wants a writable array, and a set that is trained on from memory should be there
        return LabelledImages(torch.from_numpy(np.array(array)), torch.tensor([labels[i] for i in chosen]))

    def _files(self, folder: Path) -> tuple[list[Path], list[int]]:
        """Image files of a split in a fixed order, and their labels."""
        known = Image.registered_extensions()
        files, labels = [], []
        for label, name in enumerate(self.classes or [""]):
            if not (folder / name).is_dir():
                raise FileNotFoundError(
                    f"root needs a folder for each class in every split, {folder / name} is missing"
                )
            for file in sorted((folder / name).rglob("*")):
                inside = file.relative_to(folder).parts
                if file.suffix.lower() in known and not any(part.startswith(".") for part in inside):
                    files.append(file)
                    labels.append(label)
        return files, labels
