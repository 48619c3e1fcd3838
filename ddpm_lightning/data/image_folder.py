"""Any folder of images, with or without class folders."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ddpm_lightning.data.base import PackedDataModule, Split
from ddpm_lightning.data.sources import File, Source

HELD_OUT_NAMES = ("val", "valid", "validation", "test")


class ImageFolder(PackedDataModule):
    """Images below ``root``, resized and cut at the centre to ``image_size``.

    With a folder ``train`` in root, and perhaps ``val`` (or valid, validation, test), these are the splits; otherwise a
    fraction ``val_fraction`` of the images, drawn by ``split_seed``, is held out. Folders of a split are its classes,
    in alphabetical order; images beside each other are unlabelled. Hidden files and other kinds of file are passed
    over.
    """

    def __init__(
        self, root: str, val_fraction: float = 0.1, split_seed: int = 0, num_classes: int | None = None, **kwargs: Any
    ) -> None:
        super().__init__(root=root, num_classes=num_classes, **kwargs)
        if not 0 < val_fraction < 1:
            raise ValueError(f"val_fraction must lie in (0, 1), got {val_fraction}")
        if not self.root.is_dir():
            raise FileNotFoundError(f"root must be a folder of images, got {root}")
        self.val_fraction = val_fraction
        self.split_seed = split_seed
        train = self.root / "train"
        self.folders: dict[Split, Path] = {"train": train if train.is_dir() else self.root}
        held_out = [self.root / name for name in HELD_OUT_NAMES if (self.root / name).is_dir()]
        if train.is_dir() and held_out:
            self.folders["val"] = held_out[0]
        self.classes = sorted(f.name for f in self.folders["train"].iterdir() if f.is_dir() and f.name[0] != ".")
        found = len(self.classes) or None
        if num_classes not in (None, found):
            allowed = f"null, or {found}, the class folders of {self.folders['train']}" if found else "null"
            raise ValueError(f"num_classes must be {allowed}, got {num_classes}")
        self.num_classes = found

    @property
    def class_names(self) -> list[str] | None:
        return self.classes or None

    def sources(self, split: Split) -> tuple[list[Source], list[int]]:
        sources, labels = self._found(self.folders.get(split, self.folders["train"]))
        if "val" in self.folders:
            return sources, labels
        order = np.random.default_rng(self.split_seed).permutation(len(sources))
        held_out = max(1, round(self.val_fraction * len(sources)))
        chosen = np.sort(order[:held_out] if split == "val" else order[held_out:])
        return [sources[i] for i in chosen], [labels[i] for i in chosen]

    def _found(self, folder: Path) -> tuple[list[Source], list[int]]:
        """Image files of a split in a fixed order, and their labels."""
        known = Image.registered_extensions()
        sources: list[Source] = []
        labels: list[int] = []
        passed_over = 0
        for label, name in enumerate(self.classes or [""]):
            if not (folder / name).is_dir():
                raise FileNotFoundError(
                    f"root needs a folder for each class in every split, {folder / name} is missing"
                )
            for file in sorted(path for path in (folder / name).rglob("*") if path.is_file()):
                inside = file.relative_to(folder).parts
                if file.suffix.lower() in known and not any(part.startswith(".") for part in inside):
                    sources.append(File(file))
                    labels.append(label)
                elif not file.is_relative_to(self.cache):
                    passed_over += 1
        if passed_over:
            print(f"{passed_over} hidden files and files of other kinds in {folder} are passed over")
        return sources, labels
