"""Measure this project's speed on this machine: ``python scripts/benchmark.py data``, or ``sampling``.

Alternatives are timed in turn, in one process, with one thread; the figure to trust is the ratio of their medians.
``data`` counts CPU seconds. ``sampling`` shows what a sampler costs beside the network, and with ``--ckpt runs/digits``
the Frechet distance that 20 network calls reach, against 1000 ancestral steps, and the time of each.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any


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


def sampling(repeats: int, ckpt: str | None, num_images: int) -> None:
    """The loop's cost per step with a network that costs nothing, and on a checkpoint time against quality."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    from ddpm_lightning.diffusion.samplers.ancestral import AncestralSampler
    from ddpm_lightning.diffusion.samplers.base import Sampler
    from ddpm_lightning.diffusion.samplers.ddim import DDIMSampler
    from ddpm_lightning.diffusion.samplers.dpm_solver import DPMSolverSampler
    from ddpm_lightning.diffusion.samplers.heun import HeunSampler
    from ddpm_lightning.diffusion.samplers.unipc import UniPCSampler
    from ddpm_lightning.diffusion.schedules.linear import LinearSchedule

    class Free:
        schedule = LinearSchedule()
        x_0 = torch.zeros(16, 3, 32, 32)

        def __call__(self, x_t: torch.Tensor, t: object, label: object = None) -> torch.Tensor:
            return self.x_0

    class Counting(TorchDispatchMode):
        ops = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            out = func(*args, **(kwargs or {}))
            # scalars on the CPU cost next to nothing, and launch nothing on a GPU
            self.ops += isinstance(out, torch.Tensor) and out.ndim > 0
            return out

    torch.set_num_threads(1)
    steps, x_T = 200, torch.randn(16, 3, 32, 32)
    samplers: list[Sampler] = [AncestralSampler(steps), DDIMSampler(steps), DPMSolverSampler(steps)]
    samplers += [UniPCSampler(steps), HeunSampler(steps)]
    times: dict[str, list[float]] = {type(sampler).__name__: [] for sampler in samplers}
    noise: list[float] = []
    for _ in range(repeats):
        for sampler in samplers:
            start = time.perf_counter()
            sampler(Free(), x_T)
            times[type(sampler).__name__].append((time.perf_counter() - start) / steps)
        start = time.perf_counter()
        for _ in range(steps):
            torch.randn_like(x_T)
        noise.append((time.perf_counter() - start) / steps)
    print("a step beside the network, 16 images of 3x32x32, one thread")
    for sampler in samplers:
        with Counting() as counting:
            sampler(Free(), x_T)
        name, median = type(sampler).__name__, statistics.median(times[type(sampler).__name__]) * 1e6
        print(f"{name:<20}{median:>6.0f} us {counting.ops / steps:>6.1f} operations on images")
    print(f"{'(its noise alone':<20}{statistics.median(noise) * 1e6:>6.0f} us for the ancestral sampler)")
    if ckpt:
        quality(ckpt, num_images, AncestralSampler(1000), [DPMSolverSampler(20), UniPCSampler(20)])


def quality(ckpt: str, num_images: int, slow: Any, fast: list[Any]) -> None:
    """Seconds and Frechet distance of each sampler; the same seeds, and further ones, to see what chance does."""
    import torch

    from ddpm_lightning import load
    from ddpm_lightning.checkpoint import load_data
    from ddpm_lightning.evaluation.features import Classifier
    from ddpm_lightning.evaluation.fidelity import frechet_distance
    from ddpm_lightning.generation import generate
    from ddpm_lightning.images import to_uint8

    model = load(ckpt, device="cpu")
    train = load_data(model.config).split("train")
    classifier = Classifier()
    classifier.fit(train.images, train.labels)
    real = classifier(train.images).features
    classes = model.config["model"]["num_classes"]
    print(f"{num_images} images of {ckpt}, Frechet distance in the features of a classifier, two sets of seeds")
    seconds = {}
    for sampler in (slow, *fast):
        distances, taken = [], 0.0
        for first in (0, num_images):
            labels = None if classes is None else [i % classes for i in range(num_images)]
            start = time.perf_counter()
            seeds = range(first, first + num_images)
            batches = generate(model.denoiser, sampler, model.denoiser.image_shape, seeds, labels)
            images = torch.cat([to_uint8(batch) for batch in batches])
            taken += time.perf_counter() - start
            distances.append(frechet_distance(classifier(images).features, real))
        seconds[sampler] = taken / 2
        shown = ", ".join(f"{distance:.3f}" for distance in distances)
        faster = f"{seconds[slow] / seconds[sampler]:.1f} x as fast" if sampler is not slow else ""
        name = f"{type(sampler).__name__} {sampler.num_steps}"
        print(f"{name:<24}{seconds[sampler]:>8.2f} s   {shown}   {faster}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["data", "sampling"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--ckpt", help="for sampling: a run of the digits")
    parser.add_argument("--images", type=int, default=1000, help="for sampling with --ckpt")
    arguments = parser.parse_args()
    if arguments.what == "data":
        data(arguments.repeats)
    else:
        sampling(arguments.repeats, arguments.ckpt, arguments.images)
