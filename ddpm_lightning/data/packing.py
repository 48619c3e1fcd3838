"""Image files -> one uint8 array on disk, decoded once and memory-mapped from then on."""

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from filelock import FileLock
from PIL import Image
from tqdm import tqdm

from ddpm_lightning.data.preprocessing import Preprocessing
from ddpm_lightning.data.sources import Source

LISTED = 10  # broken images named in an error
CHUNK = 64  # images a task
ON_ERROR = ("stop", "skip")
BROKEN = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)


class Packed(NamedTuple):
    """Images (N, C, H, W) uint8, memory-mapped, and the indices of the sources that were broken and left out."""

    images: np.ndarray
    broken: list[int]


def pack(sources: Sequence[Source], preprocessing: Preprocessing, folder: Path, on_error: str = "stop") -> Packed:
    """Decode all sources into ``folder``, or find them there from an earlier time.

    The array's name is a hash over all that shaped it: names, sizes and times of the sources, and the preprocessing.
    Beside it lies a JSON file that describes it; an array that does not match is made anew. Both are written under
    temporary names first, so that a kill at any moment leaves nothing that could be taken for whole. Of several
    processes that start together one packs, the others wait.

    Raises ValueError that names broken images, unless ``on_error`` is "skip".
    """
    stamps = json.dumps([preprocessing.description, on_error, [source.stamp() for source in sources]])
    name = hashlib.sha256(stamps.encode()).hexdigest()[:16]
    array, description = folder / f"{name}.npy", folder / f"{name}.json"
    found = _find(array, description)
    if found is None:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{name}.lock"):
            found = _find(array, description) or _write(sources, preprocessing, on_error, array, description)
    return found


def _find(array: Path, description: Path) -> Packed | None:
    """The packed array, if it is there and whole."""
    try:
        described = json.loads(description.read_text())
        if array.stat().st_size != described["bytes"]:
            return None
        # copy on write: torch wants writable memory, and nobody's slip may reach the file
        images = np.load(array, mmap_mode="c")
        return Packed(images, described["broken"]) if list(images.shape) == described["shape"] else None
    except (OSError, ValueError, KeyError, EOFError):
        return None


def _write(
    sources: Sequence[Source], preprocessing: Preprocessing, on_error: str, array: Path, description: Path
) -> Packed:
    def decode(chunk: Sequence[Source]) -> list[np.ndarray | str]:
        decoded: list[np.ndarray | str] = []
        for source in chunk:
            try:
                with source.open() as file:
                    decoded.append(preprocessing(file))
            except BROKEN as error:
                decoded.append(f"{source} ({error})")
        return decoded

    part, text = array.with_suffix(".npy.part"), description.with_suffix(".json.part")
    cores = os.cpu_count() or 1
    window = CHUNK * cores * 4  # decoded images in memory at a time
    broken: dict[int, str] = {}
    try:
        with (
            open(part, "wb") as out,
            ThreadPoolExecutor(cores) as pool,  # Pillow decodes outside the interpreter's lock
            tqdm(total=len(sources), desc="Packing", unit="images", leave=False, disable=None) as bar,
        ):
            _write_header(out, (len(sources), *preprocessing.image_shape))
            for start in range(0, len(sources), window):
                chunks = [sources[i : i + CHUNK] for i in range(start, min(start + window, len(sources)), CHUNK)]
                decoded = [one for chunk in pool.map(decode, chunks) for one in chunk]
                for i, image in enumerate(decoded, start):
                    if isinstance(image, str):
                        broken[i] = image
                    else:
                        out.write(image.tobytes())
                bar.update(len(decoded))
            if broken and on_error == "stop":
                listed = ", ".join(broken[i] for i in sorted(broken)[:LISTED])
                raise ValueError(f"on_error must be skip to go on without {len(broken)} broken images: {listed}")
            shape = (len(sources) - len(broken), *preprocessing.image_shape)
            out.seek(0)
            _write_header(out, shape)  # as long as the first: numpy leaves room for the count to change
        described = {
            "fingerprint": array.stem,
            **preprocessing.description,
            "shape": shape,
            "broken": sorted(broken),
            "bytes": part.stat().st_size,
        }
        text.write_text(json.dumps(described))
        os.replace(text, description)
        os.replace(part, array)
    finally:
        for leftover in (part, text):
            leftover.unlink(missing_ok=True)
    packed = _find(array, description)
    assert packed is not None
    return packed


def _write_header(file: IO[bytes], shape: tuple[int, ...]) -> None:
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
