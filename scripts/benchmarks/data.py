"""Batches from memory, against decoding each sample: images per CPU second, with one thread."""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import CIFAR10, DatasetFolder
from torchvision.datasets.folder import default_loader

from benchmarks.setting import Setting
from benchmarks.show import leave
from ddpm_lightning.data.resident import LabelledImages, TrainingLoader

BATCH = 128


def data(setting: Setting) -> None:
    """At CIFAR-10's size, and JPEG files of 64x64."""
    steps = [transforms.RandomHorizontalFlip(), transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)]
    transform = transforms.Compose(steps)
    cifar, serve = resident(50_000, 32)
    peer = CIFAR10.__new__(CIFAR10)  # the class as it is, without its download
    peer.data, peer.targets = cifar.images.permute(0, 2, 3, 1).numpy(), cifar.labels.tolist()
    peer.transform, peer.target_transform = transform, None
    loader = DataLoader(peer, BATCH, shuffle=True, drop_last=True)
    rows = compare("32x32", serve, "torchvision's CIFAR10", loader, setting.repeats)
    with tempfile.TemporaryDirectory() as folder:
        photographs, serve = resident(2_000, 64)
        # smooth like photographs, as noise takes longer to decode
        smooth = torch.nn.functional.interpolate(photographs.images[:, :, ::8, ::8].float(), size=64, mode="bilinear")
        for i, image in enumerate(smooth.byte()):
            path = Path(folder) / "a" / f"{i}.jpg"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(path, quality=90)
        files = DatasetFolder(folder, default_loader, ("jpg",), transform)
        loader = DataLoader(files, BATCH, shuffle=True, drop_last=True)
        rows += compare("64x64", serve, "JPEG files", loader, setting.repeats)
    title = f"Loading, batches of {BATCH}: images per CPU second, medians of {setting.repeats}"
    leave(setting.output, "data", title, rows, "images/CPU s")


def resident(count: int, size: int) -> tuple[LabelledImages, Callable[[], Iterator[Any]]]:
    """This project's loader of such a set, without an end."""
    pixels = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8)
    ours = TrainingLoader(LabelledImages(pixels, torch.arange(count) % 10), BATCH, seed=0, flip=True)

    def forever() -> Iterator[Any]:
        while True:
            yield from ours

    return ours.data, forever


def compare(
    size: str, ours: Callable[[], Iterator[Any]], name: str, theirs: Iterable[Any], repeats: int
) -> list[dict[str, Any]]:
    """Time both in turn, ours twice: how far the two differ is how far noise goes."""
    rates: dict[str, list[float]] = {"resident": [], name: [], "resident again": []}
    for _ in range(repeats):
        rates["resident"].append(images_per_second(ours, 50_000))
        rates[name].append(images_per_second(lambda: theirs, 10_000))
        rates["resident again"].append(images_per_second(ours, 50_000))
    peer = statistics.median(rates[name])
    return [
        {
            "size": size,
            "from": which,
            "images/CPU s": statistics.median(measured),
            "least": min(measured),
            "most": max(measured),
            "x peer": statistics.median(measured) / peer,
        }
        for which, measured in rates.items()
    ]


def images_per_second(serve: Callable[[], Iterable[Any]], images: int) -> float:
    """Images that a loader's first batches bring, by CPU time."""
    start, count = time.process_time(), 0
    for batch, _ in serve():
        count += len(batch)
        if count >= images:
            break
    return count / (time.process_time() - start)
