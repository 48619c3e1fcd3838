"""CelebA, in its official layout."""

from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any

from torchvision.datasets import CelebA as TorchvisionCelebA

from ddpm_lightning.data.base import PackedDataModule, Split
from ddpm_lightning.data.sources import File, Source

PARTITION = {"train": "0", "val": "1", "test": "2"}


class FaceAttributeSet(PackedDataModule):
    """Photographs with yes-or-no attributes: with the name of one there are two classes, without and with it."""

    def __init__(self, root: str, attribute: str | None = None, num_classes: int | None = None, **kwargs: Any) -> None:
        found = None if attribute is None else 2
        if num_classes not in (None, found):
            raise ValueError(f"num_classes must be {'null' if found is None else 'null or 2'}, got {num_classes}")
        super().__init__(root=root, num_classes=found, **kwargs)
        self.attribute = attribute

    @property
    def class_names(self) -> list[str] | None:
        return None if self.attribute is None else [f"not {self.attribute}", self.attribute]


class CelebA(FaceAttributeSet):
    """Colour photographs of faces, 178x218 pixels: 162 770 to train on, 19 867 held out.  Liu et al. (2015).

    Read from ``<root>/celeba/``: ``img_align_celeba/*.jpg`` and ``list_eval_partition.txt``, downloaded by torchvision
    if they are missing. ``attribute`` is one of the 40 of ``list_attr_celeba.txt``, or None for no labels.
    ``split_sizes`` are the official sizes of train, val and test, with which the list is compared; None to take it as
    it is.
    """

    def __init__(self, root: str, split_sizes: Sequence[int] | None = (162_770, 19_867, 19_962), **kwargs: Any) -> None:
        super().__init__(root=root, **kwargs)
        self.split_sizes = None if split_sizes is None else tuple(split_sizes)
        self.folder = self.root / "celeba"

    def prepare_data(self) -> None:
        """Fetch what is missing. Raises FileNotFoundError that says what to put where."""
        wanted = ["img_align_celeba", "list_eval_partition.txt"] + ["list_attr_celeba.txt"] * (
            self.attribute is not None
        )
        missing = [name for name in wanted if not (self.folder / name).exists()]
        if not missing:
            return
        try:
            TorchvisionCelebA(str(self.root), download=True)
        except (OSError, RuntimeError, HTTPException) as error:
            reason = " ".join(str(error).split())
            lacking = ", ".join(f"celeba/{name}" for name in missing)
            raise FileNotFoundError(
                f"root={self.root} lacks {lacking}, and torchvision can't download CelebA ({reason}):"
                f" fetch img_align_celeba.zip and the lists elsewhere, and unpack them in {self.folder}"
            ) from error

    def sources(self, split: Split) -> tuple[list[Source], list[int]]:
        partition = self._table("list_eval_partition.txt")
        if self.split_sizes is not None:
            sizes = tuple(sum(row[1] == number for row in partition) for number in PARTITION.values())
            if sizes != self.split_sizes:
                found = f"{list(sizes)}, the counts in list_eval_partition.txt"
                raise ValueError(f"split_sizes must be null or {found}, got {list(self.split_sizes)}")
        chosen = [row[0] for row in partition if row[1:] == [PARTITION[split]]]
        images = self.folder / "img_align_celeba"
        there = {path.name for path in images.iterdir()}
        missing = [name for name in chosen if name not in there]
        if missing:
            lacks = f"lacks {len(missing)} of the {len(chosen)} images of the {split} split: {', '.join(missing[:3])}"
            raise ValueError(f"root must hold all of CelebA, and {images} {lacks}{' ...' if missing[3:] else ''}")
        return [File(images / name) for name in chosen], self._labels(chosen)

    def _labels(self, names: Sequence[str]) -> list[int]:
        if self.attribute is None:
            return [0] * len(names)
        _, attributes, *rows = self._table("list_attr_celeba.txt")
        if self.attribute not in attributes:
            raise ValueError(f"attribute must be one of {', '.join(attributes)}, got {self.attribute}")
        column = attributes.index(self.attribute) + 1
        has = {row[0]: int(row[column] == "1") for row in rows}
        return [has[name] for name in names]

    def _table(self, name: str) -> list[list[str]]:
        path: Path = self.folder / name
        try:
            return [line.split() for line in path.read_text().splitlines() if line.strip()]
        except OSError as error:
            raise ValueError(f"{path} must be CelebA's list of that name ({error})") from error
