"""The preview command: a data set -> pictures and counts, as the network sees it."""

from pathlib import Path

import matplotlib
import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from torch import Tensor

from ddpm_lightning.data.base import ImageDataModule
from ddpm_lightning.images import to_uint8
from ddpm_lightning.runs.build import MISTAKES, build, explain
from ddpm_lightning.runs.refusal import Refusal

COLUMNS = 8


def preview(cfg: DictConfig) -> None:
    """Write a captioned grid of training images and a histogram of their values, and print the counts."""
    if cfg.num_images < 1:
        raise Refusal(f"num_images={cfg.num_images}: must be at least 1")
    data: ImageDataModule = build(cfg, "data")
    try:
        data.prepare_data()
        splits = {name: data.split(name) for name in ("train", "val")}
        images, labels = batch(data, cfg.num_images)
    except MISTAKES as mistake:
        raise Refusal(explain("data", mistake)) from mistake
    name = HydraConfig.get().runtime.choices["data"] if HydraConfig.initialized() else type(data).__name__
    folder = Path(cfg.output_dir or Path("runs") / "preview" / name)
    folder.mkdir(parents=True, exist_ok=True)
    draw(folder, images, labels, data.class_names)
    print(f"{name}: {'x'.join(map(str, data.image_shape))}, train sha256 {data.fingerprint('train')[:12]}")
    for split, (pixels, classes) in splits.items():
        print(f"{split:<6}{len(pixels)} images")
        if data.num_classes is not None and data.class_names is not None:
            counts = torch.bincount(classes, minlength=data.num_classes).tolist()
            print("      " + ", ".join(f"{n} {count}" for n, count in zip(data.class_names, counts, strict=True)))
    print(f"{folder / 'images.png'}, {folder / 'values.png'}")


def batch(data: ImageDataModule, num_images: int) -> tuple[Tensor, Tensor]:
    """The first training images, from the very loader that training reads."""
    data.batch_size = min(num_images, len(data.split("train").images))
    images, labels = next(iter(data.train_dataloader()))
    return images.cpu(), labels.cpu()


def draw(folder: Path, images: Tensor, labels: Tensor, class_names: list[str] | None) -> None:
    """``images.png``: a grid with captions; ``values.png``: how often each value in [-1, 1] occurs."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = -(-len(images) // COLUMNS)
    figure, axes = plt.subplots(rows, COLUMNS, figsize=(1.4 * COLUMNS, 1.6 * rows), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, image, label in zip(axes.flat, to_uint8(images), labels.tolist(), strict=False):
        axis.imshow(image.permute(1, 2, 0).numpy(), cmap="gray", vmin=0, vmax=255)
        if class_names is not None:
            axis.set_title(class_names[label], fontsize=8)
    figure.tight_layout()
    figure.savefig(folder / "images.png", dpi=100)

    figure, axis = plt.subplots(figsize=(6, 3))
    for channel, colour in enumerate("k" if images.shape[1] == 1 else "rgb"):
        counts, edges = np.histogram(images[:, channel].numpy(), bins=64, range=(-1, 1))
        axis.stairs(counts, edges, color=colour)
    axis.set_xlabel("value")
    axis.set_ylabel("pixels")
    figure.tight_layout()
    figure.savefig(folder / "values.png", dpi=100)
    plt.close("all")
