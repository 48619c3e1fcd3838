"""The sets that torchvision downloads and checks."""

from abc import abstractmethod
from http.client import HTTPException
from typing import Any

from filelock import FileLock

from ddpm_lightning.data.base import ImageDataModule


class TorchvisionDataModule(ImageDataModule):
    """A set that torchvision fetches: a subclass names its class, and where its files come from and go to."""

    source: str
    destination: str

    def prepare_data(self) -> None:
        """Check the files, and fetch what is missing or broken. Whole sets may be in a folder that is read-only.

        Raises FileNotFoundError that says what to put where.
        """
        if not self._whole():
            self._download()

    def _whole(self) -> bool:
        try:
            return all(self.open(train, download=False) for train in (True, False))
        except RuntimeError:  # torchvision's word for files that are missing or broken
            return False

    def _download(self) -> None:
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with FileLock(self.root / ".lock"):  # of several ranks that start together, one fetches
                for train in (True, False):
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
