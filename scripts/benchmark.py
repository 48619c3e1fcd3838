"""Measure this project's speed on this machine: ``python scripts/benchmark.py data``.

Alternatives are timed in turn, in one process, with one thread, in CPU seconds; the figure to trust is the ratio
of their medians.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterable, Iterator


def images_per_second(serve: Callable[[], Iterable], images: int) -> float:
    """Images that a loader's first batches bring, by CPU time."""
    start, count = time.process_time(), 0
    for batch, _ in serve():
        count += len(batch)
        if count >= images:
            break
    return count / (time.process_time() - start)


def data(repeats: int) -> None:
    """Batches of 128 from memory, against decoding each sample: at CIFAR-10's size, and JPEG files of 64x64."""
    import tempfile
    from pathlib import Path

    import torch
    from PIL import Image
    from torch.utils.data import DataLoader
    from torchvision import transforms
    from torchvision.datasets import CIFAR10, DatasetFolder
    from torchvision.datasets.folder import default_loader

    from ddpm_lightning.data.resident import LabelledImages, TrainingLoader

    torch.set_num_threads(1)
    steps = [transforms.RandomHorizontalFlip(), transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)]
    transform = transforms.Compose(steps)

    def resident(count: int, size: int) -> tuple[LabelledImages, Callable[[], Iterator]]:
        pixels = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8)
        ours = TrainingLoader(LabelledImages(pixels, torch.arange(count) % 10), 128, seed=0, flip=True)

        def forever() -> Iterator:
            while True:
                yield from ours

        return ours.data, forever

    cifar, serve = resident(50_000, 32)
    peer = CIFAR10.__new__(CIFAR10)  # the class as it is, without its download
    peer.data, peer.targets = cifar.images.permute(0, 2, 3, 1).numpy(), cifar.labels.tolist()
    peer.transform, peer.target_transform = transform, None
    compare("32x32", serve, "torchvision's CIFAR10", DataLoader(peer, 128, shuffle=True, drop_last=True), repeats)

    with tempfile.TemporaryDirectory() as folder:
        photographs, serve = resident(2_000, 64)
        # smooth like photographs, as noise takes longer to decode
        smooth = torch.nn.functional.interpolate(photographs.images[:, :, ::8, ::8].float(), size=64, mode="bilinear")
        for i, image in enumerate(smooth.byte()):
            path = Path(folder) / "a" / f"{i}.jpg"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(path, quality=90)
        files = DatasetFolder(folder, default_loader, ("jpg",), transform)
        compare("64x64", serve, "JPEG files", DataLoader(files, 128, shuffle=True, drop_last=True), repeats)


def compare(title: str, ours: Callable[[], Iterator], name: str, theirs: Iterable, repeats: int) -> None:
    """Time both in turn, ours twice: how far the two differ is how far noise goes."""
    rates: dict[str, list[float]] = {"resident": [], "resident again": [], name: []}
    for _ in range(repeats):
        rates["resident"].append(images_per_second(ours, 50_000))
        rates[name].append(images_per_second(lambda: theirs, 10_000))
        rates["resident again"].append(images_per_second(ours, 50_000))
    medians = {which: statistics.median(values) for which, values in rates.items()}
    for which, median in medians.items():
        spread = f"{min(rates[which]):.0f} .. {max(rates[which]):.0f}"
        ratio = f"{median / medians[name]:.1f} x {name}"
        print(f"{title}  {which:<22}{median:>9.0f} images per CPU second ({spread}), {ratio}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["data"])
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    {"data": data}[arguments.what](arguments.repeats)
