"""Features on disk, so that an interrupted evaluation goes on, and a finished one is not made again."""

import hashlib
import json
import os
import time
import warnings
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddpm_lightning.evaluation.features import Extracted, Features

VERSION = 1  # of the files


def user_cache() -> Path:
    """Where what belongs to no run is kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ddpm-lightning"


def digest(key: dict[str, Any]) -> str:
    """sha256 of plain values."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()


class FeatureStore:
    """Rows of features by index, of an image in its set or of a seed, in a folder named by a hash of ``key``.

    ``key`` holds all that shapes a row but its index. Rows are added in parts, each a file that is written whole or not
    at all, so that processes may share a store. What another version of this project wrote is left out, with a
    warning.
    """

    def __init__(self, folder: Path, key: dict[str, Any]) -> None:
        self.folder = folder / digest(key)[:16]
        described = {"version": VERSION, "key": json.loads(json.dumps(key))}
        record = self.folder / "key.json"
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            found = json.loads(record.read_text())
        except FileNotFoundError:
            found = None
        except (OSError, ValueError):
            found = {}
        if found is not None and found != described:
            was = found.get("version") if isinstance(found, dict) else None
            warnings.warn(f"{self.folder} is of version {was}, not {VERSION}: computed anew", stacklevel=2)
        if found != described:
            for part in self.folder.glob("part-*.npz"):
                part.unlink(missing_ok=True)
            replace_whole(record, lambda file: file.write_text(json.dumps(described, indent=1) + "\n"))
        self._parts: dict[int, tuple[Path, float]] = {}  # by index: the file that has its row, and the row's seconds
        self.refresh()

    def refresh(self) -> None:
        """Look again for rows, also of other processes."""
        self._parts = {}
        for part in sorted(self.folder.glob("part-*.npz")):
            try:
                with open(part, "rb") as file, np.load(file) as arrays:  # which leaves a broken one open
                    indices, seconds = arrays["indices"].tolist(), float(arrays["seconds"])
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
                warnings.warn(f"{part} is broken: computed anew", stacklevel=2)
                part.unlink(missing_ok=True)
                continue
            self._note(part, indices, seconds)

    def missing(self, indices: Sequence[int]) -> list[int]:
        """Those that have no row yet, in their order."""
        return [index for index in indices if index not in self._parts]

    def add(self, indices: Sequence[int], rows: Extracted, seconds: float = 0.0) -> None:
        """Keep rows, and how many seconds they took."""
        arrays = {name: tensor.numpy() for name, tensor in rows._asdict().items() if tensor is not None}
        named = hashlib.sha256(json.dumps(list(indices)).encode()).hexdigest()[:16]  # other rows never take its place
        path = self.folder / f"part-{indices[0]:012d}-{named}.npz"
        replace_whole(path, lambda part: np.savez(part, indices=np.array(indices), seconds=seconds, **arrays))
        self._note(path, indices, seconds)

    def _note(self, path: Path, indices: Sequence[int], seconds: float) -> None:
        self._parts |= {index: (path, seconds / len(indices)) for index in indices}

    def seconds(self, indices: Sequence[int]) -> float:
        """That the rows took when they were made, of all processes together."""
        return sum(self._parts[index][1] for index in indices)

    def read(self, indices: Sequence[int]) -> Extracted:
        """Rows in the order asked for. Raises KeyError for one that is not there."""
        paths = dict.fromkeys(self._parts[index][0] for index in indices)
        parts: dict[str, list[np.ndarray]] = {}
        places: dict[int, int] = {}
        count = 0
        for path in paths:
            with np.load(path) as arrays:
                places |= {index: count + row for row, index in enumerate(arrays["indices"].tolist())}
                count += len(arrays["indices"])
                for name in (n for n in Extracted._fields if n in arrays):
                    parts.setdefault(name, []).append(arrays[name])
        order = torch.tensor([places[index] for index in indices])
        found = {name: torch.from_numpy(np.concatenate(arrays))[order] for name, arrays in parts.items()}
        return Extracted(found["features"], found.get("logits"), found.get("predicted"))


def extract(features: Features, images: Tensor, block: int = 1) -> Extracted:
    """Features of images (B, C, H, W) uint8, in a batch that is filled up to a multiple of ``block``."""
    rows = features(torch.cat([images, images[-1:].expand(-len(images) % block, -1, -1, -1)]))
    kept = (None if column is None else column[: len(images)] for column in rows[1:])
    return Extracted(rows.features[: len(images)], *kept)


def fill(
    store: FeatureStore,
    features: Features,
    indices: Sequence[int],
    images: Callable[[Sequence[int]], Tensor],
    batch_size: int,
    block: int = 1,
    on_batch: Callable[[int], None] = lambda count: None,
) -> None:
    """Add rows, batch by batch, of images (B, C, H, W) uint8 that are asked for by index."""
    for start in range(0, len(indices), batch_size):
        began = time.perf_counter()
        batch = indices[start : start + batch_size]
        store.add(batch, extract(features, images(batch), block), time.perf_counter() - began)
        on_batch(len(batch))


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The content of an .npz file. Raises ValueError for anything else."""
    try:
        with open(path, "rb") as file, np.load(file) as arrays:
            return {name: arrays[name] for name in arrays}
    except (OSError, ValueError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"not an .npz file of arrays: {error}") from error


def replace_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file whole or not at all."""
    part = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        write(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
