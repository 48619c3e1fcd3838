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
    """Batches of 128 from 50 000 images of CIFAR-10's size: ours, and torchvision's with transforms for each sample."""
    import torch
    from torch.utils.data import DataLoader
    from torchvision import transforms
    from torchvision.datasets import CIFAR10

    from ddpm_lightning.data.resident import LabelledImages, TrainingLoader

    torch.set_num_threads(1)
    pixels = torch.randint(0, 256, (50_000, 3, 32, 32), dtype=torch.uint8)
    labels = torch.arange(50_000) % 10
    ours = TrainingLoader(LabelledImages(pixels, labels), 128, seed=0, flip=True)

    peer = CIFAR10.__new__(CIFAR10)  # the class as it is, without its download
    peer.data, peer.targets, peer.target_transform = pixels.permute(0, 2, 3, 1).numpy(), labels.tolist(), None
    steps = [transforms.RandomHorizontalFlip(), transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)]
    peer.transform = transforms.Compose(steps)
    theirs = DataLoader(peer, 128, shuffle=True, drop_last=True)

    def forever() -> Iterator:
        while True:
            yield from ours

    rates: dict[str, list[float]] = {"resident": [], "resident again": [], "torchvision": []}
    for _ in range(repeats):
        rates["resident"].append(images_per_second(forever, 100_000))
        rates["torchvision"].append(images_per_second(lambda: theirs, 10_000))
        rates["resident again"].append(images_per_second(forever, 100_000))  # the control: how far noise goes
    medians = {name: statistics.median(values) for name, values in rates.items()}
    for name, median in medians.items():
        ratio = median / medians["torchvision"]
        spread = f"{min(rates[name]):.0f} .. {max(rates[name]):.0f}"
        print(f"{name:<16}{median:>10.0f} images per CPU second ({spread}), {ratio:.1f} x torchvision")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["data"])
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    {"data": data}[arguments.what](arguments.repeats)
