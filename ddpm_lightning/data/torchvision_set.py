"""The sets that torchvision downloads and checks."""

from abc import abstractmethod
from http.client import HTTPException
from typing import Any

from ddpm_lightning.data.base import ImageDataModule


class TorchvisionDataModule(ImageDataModule):
    """A set that torchvision fetches: a subclass names its class, and where its files come from and go to."""

    source: str
    destination: str

    def fetch(self) -> None:
        for train in (True, False):
            try:
                self.open(train, download=False)
            except RuntimeError:  # torchvision's word for files that are missing or broken
                self._download(train)

    def _download(self, train: bool) -> None:
        try:
            self.open(train, download=True)
        except (OSError, RuntimeError, HTTPException) as error:
            reason = " ".join(str(error).split())  # torchvision's own takes several lines
            raise FileNotFoundError(
                f"root={self.root} holds no whole copy of the set, and {self.source} can't be downloaded ({reason}):"
                f" fetch it elsewhere and put it at {self.root / self.destination}"
            ) from error

    @abstractmethod
    def open(self, train: bool, download: bool) -> Any:
        """torchvision's object for a split, over files under ``root``."""
