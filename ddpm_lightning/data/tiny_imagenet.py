"""Tiny ImageNet, read from its zip archive or from the folder it unpacks to."""

import functools
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from filelock import FileLock

from ddpm_lightning.data.base import PackedDataModule, Split
from ddpm_lightning.data.sources import File, Source, open_archive

NAME = "tiny-imagenet-200"
URL = f"http://cs231n.stanford.edu/{NAME}.zip"
IMAGES = (".jpeg", ".jpg", ".png")


class TinyImageNet(PackedDataModule):
    """64x64 colour photographs of 200 classes: 100 000 to train on, 10 000 held out.  Le & Yang (2015), CS231n.

    ``archive`` is the path of a zip archive in the official layout, or of the folder it unpacks to; None for one of
    either name in ``root``, or else the official archive, downloaded there and checked by ``md5``. Training images lie
    in class folders, held-out ones are labelled by ``val/val_annotations.txt``. Labels follow the order of
    ``wnids.txt``; there are as many as it lists.
    """

    def __init__(
        self,
        root: str,
        archive: str | None = None,
        md5: str = "90528d7ca1a48142e341f4ef8d21d0de",
        num_classes: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(root=root, num_classes=num_classes, **kwargs)
        self.md5 = md5
        self.archive = self._find(archive)
        self.wanted_classes = num_classes
        if self.archive is not None:
            self._take_classes()

    def _find(self, archive: str | None) -> Path | None:
        candidates = [self.root / f"{NAME}.zip", self.root / NAME] if archive is None else [Path(archive).expanduser()]
        found = [path for path in candidates if path.exists()]
        if not found and archive is not None:
            raise FileNotFoundError(
                f"archive must be a zip archive or folder of Tiny ImageNet that exists, got {archive}"
            )
        return found[0] if found else None

    def prepare_data(self) -> None:
        if self.archive is None:
            self.archive = self._download()
            self._take_classes()

    def _download(self) -> Path:
        """The official archive, whole or not at all. Raises FileNotFoundError that says what to put where."""
        target = self.root / f"{NAME}.zip"
        part = target.with_suffix(".zip.part")
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with FileLock(self.root / f".{NAME}.lock"):  # of several ranks that start together, one fetches
                if not target.exists():
                    torch.hub.download_url_to_file(URL, str(part), progress=True)
                    with open(part, "rb") as file:
                        found = hashlib.file_digest(file, "md5").hexdigest()
                    if found != self.md5:
                        raise OSError(f"its md5 is {found}, not {self.md5}")
                    os.replace(part, target)
        except (URLError, OSError) as error:
            raise FileNotFoundError(
                f"root={self.root} has no {NAME}.zip, and {URL} can't be downloaded ({error}):"
                f" fetch it elsewhere and put it at {target}"
            ) from error
        finally:
            part.unlink(missing_ok=True)
        return target

    def _take_classes(self) -> None:
        self.wnids = self._lines("wnids.txt")
        if self.wanted_classes not in (None, len(self.wnids)):
            raise ValueError(
                f"num_classes must be null, or {len(self.wnids)} as in wnids.txt, got {self.wanted_classes}"
            )
        self.num_classes = len(self.wnids)

    @property
    def class_names(self) -> list[str]:
        """The first of each class's words in ``words.txt``."""
        words = dict(line.split("\t", 1) for line in self._lines("words.txt") if "\t" in line)
        return [words.get(wnid, wnid).partition(",")[0] for wnid in self.wnids]

    def sources(self, split: Split) -> tuple[list[Source], list[int]]:
        files = self._files()
        label_of = {wnid: label for label, wnid in enumerate(self.wnids)}
        sources: list[Source] = []
        labels: list[int] = []
        if split == "train":
            for wnid, label in label_of.items():
                names = sorted(name for name in files.get(f"train/{wnid}/images", ()) if _is_image(name))
                if not names:
                    raise ValueError(f"{self.archive} must hold images in train/{wnid}/images, found none")
                sources += [self._source(f"train/{wnid}/images/{name}") for name in names]
                labels += [label] * len(names)
            return sources, labels
        there = files.get("val/images", set())
        for number, line in enumerate(self._lines("val/val_annotations.txt"), start=1):
            name, _, rest = line.partition("\t")
            wnid = rest.partition("\t")[0]
            if wnid not in label_of or name not in there:
                what = f"class {wnid or '(none)'}" if wnid not in label_of else f"image {name}"
                where = f"{self.archive}, val_annotations.txt, line {number}"
                raise ValueError(f"{where}: must name a class of wnids.txt and an image that is there, got {what}")
            sources.append(self._source(f"val/images/{name}"))
            labels.append(label_of[wnid])
        return sources, labels

    def _source(self, name: str) -> File:
        assert self.archive is not None
        return File(self.archive / name) if self.archive.is_dir() else File(self.archive, self._prefix + name)

    @functools.cached_property
    def _prefix(self) -> str:
        """The archive's top folder, with its slash."""
        assert self.archive is not None
        for name in open_archive(self.archive).namelist():
            if name.endswith("wnids.txt"):
                return name.removesuffix("wnids.txt")
        raise ValueError(f"{self.archive} must hold wnids.txt, as Tiny ImageNet does")

    def _lines(self, name: str) -> Sequence[str]:
        try:
            with self._source(name).open() as file:
                return [line for line in file.read().decode().splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{self.archive} must hold {name}, as Tiny ImageNet does ({error})") from error

    def _files(self) -> dict[str, set[str]]:
        """The names in each folder."""
        assert self.archive is not None
        files: dict[str, set[str]] = {}
        if self.archive.is_dir():
            paths = [str(path.relative_to(self.archive)) for path in self.archive.rglob("*")]
        else:
            prefix = self._prefix
            paths = [name.removeprefix(prefix) for name in open_archive(self.archive).namelist()]
        for path in paths:
            folder, _, name = path.rpartition("/")
            files.setdefault(folder, set()).add(name)
        return files


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGES) and not name.startswith(".")
