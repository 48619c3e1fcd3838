"""CelebA from the Hugging Face Hub, where it can be had without Google Drive."""

import io
from typing import IO, Any, NamedTuple

from ddpm_lightning.data.base import Split
from ddpm_lightning.data.celeba import FaceAttributeSet
from ddpm_lightning.data.sources import Source

SPLITS = {"train": "train", "val": "valid"}


class HubImage(NamedTuple):
    """A row of a ``datasets`` table whose image column is not decoded."""

    table: Any
    row: int

    def open(self) -> IO[bytes]:
        return io.BytesIO(self.table[self.row]["image"]["bytes"])

    def stamp(self) -> tuple[str, int, int]:
        return (self.table._fingerprint, self.row, 0)

    def __str__(self) -> str:
        return f"row {self.row} of the {self.table.split} split"


class CelebAHub(FaceAttributeSet):
    """The photographs and splits of ``CelebA``, from the Hub's ``repository``; needs ``pip install -e '.[hf]'``."""

    def __init__(self, root: str, repository: str = "flwrlabs/celeba", **kwargs: Any) -> None:
        super().__init__(root=root, **kwargs)
        self.repository = repository

    def sources(self, split: Split) -> tuple[list[Source], list[int]]:
        try:
            import datasets  # type: ignore[import-not-found, unused-ignore]  # an extra: 400 MB, two seconds to import
        except ImportError as error:
            raise ValueError("data must be celeba, or the extra installed: pip install -e '.[hf]'") from error
        try:
            table = datasets.load_dataset(self.repository, split=SPLITS[split], cache_dir=str(self.root / "hf"))
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise FileNotFoundError(f"repository={self.repository} can't be fetched from the Hub ({reason})") from error
        labels = [0] * len(table)
        if self.attribute is not None:
            if self.attribute not in table.column_names:
                names = ", ".join(sorted(set(table.column_names) - {"image", "celeb_id"}))
                raise ValueError(f"attribute must be one of {names}, got {self.attribute}")
            labels = [int(has) for has in table[self.attribute]]
        table = table.cast_column("image", datasets.Image(decode=False))
        return [HubImage(table, row) for row in range(len(table))], labels
