"""What is about to run: sizes, cost, and length, as facts for the record and as a few lines for the eye."""

import copy
import platform
from importlib.metadata import version
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from ddpm_lightning.data.base import ImageDataModule
from ddpm_lightning.module import DiffusionModule, total_steps


class Facts(NamedTuple):
    """Of a run, in plain values. ``batch`` is what an optimizer step averages over; ``steps`` and ``epochs`` are those
    planned, None without a limit; ``flops`` are those of the network's forward pass for one image.
    """

    name: str
    training_images: int
    held_out_images: int
    image_shape: list[int]
    num_classes: int | None
    parameters: int
    parameters_by_part: dict[str, int]
    flops: int
    batch_size: int
    devices: int
    accumulated: int
    batch: int
    steps: int | None
    epochs: float | None
    device: str
    precision: str
    versions: dict[str, str]


def gather(name: str, data: ImageDataModule, module: DiffusionModule, trainer: Any) -> Facts:
    """The facts of a run of this name."""
    net = module.denoiser.net
    count, held_out = (len(data.split(split).images) for split in ("train", "val"))
    devices, accumulated = trainer.world_size, trainer.accumulate_grad_batches
    batch = data.batch_size * devices * accumulated
    steps = total_steps(trainer)
    return Facts(
        name=name,
        training_images=count,
        held_out_images=held_out,
        image_shape=list(data.image_shape),
        num_classes=data.num_classes,
        parameters=count_parameters(net),
        parameters_by_part={part: count_parameters(child) for part, child in net.named_children()},
        flops=flops(module),
        batch_size=data.batch_size,
        devices=devices,
        accumulated=accumulated,
        batch=batch,
        steps=steps,
        epochs=None if steps is None else steps * batch / count,
        device=device_name(trainer.strategy.root_device),
        precision=str(trainer.precision),
        versions={"python": platform.python_version(), **{of: version(of) for of in ("torch", "lightning")}},
    )


def describe(facts: Facts) -> list[str]:
    """The lines."""
    f = facts
    parts = ", ".join(f"{part} {count / 1e6:.3f}" for part, count in f.parameters_by_part.items())
    classes = f"{f.num_classes} classes" if f.num_classes else "unlabelled"
    length = (
        "steps without a limit"
        if f.steps is None
        else f"{f.steps} steps, {f.epochs:.1f} epochs, {f.steps * f.batch} images"
    )
    return [
        f"{f.name}: {f.training_images} training and {f.held_out_images} held-out images,"
        f" {'x'.join(map(str, f.image_shape))}, {classes}",
        f"network {f.parameters / 1e6:.3f} M parameters ({parts}), {f.flops / 1e9:.4g} GFLOP forward per image",
        f"batch   {f.batch} = {f.batch_size} x {f.devices} devices x {f.accumulated} accumulated; {length}",
        f"device  {f.device}, {f.precision}",
    ]


def count_parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def device_name(device: torch.device) -> str:
    """With the maker's name of it, as far as the system tells."""
    if device.type == "cuda":
        return f"cuda, {torch.cuda.get_device_name(device)}"
    return f"{device.type}, {platform.processor() or platform.machine()}"


def flops(module: DiffusionModule) -> int:
    """Floating-point operations of the network's forward pass for one image."""
    net = copy.deepcopy(module.denoiser.net).to("meta")
    image, time = torch.empty(1, *module.denoiser.image_shape, device="meta"), torch.empty(1, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(image, time, None)
    return counter.get_total_flops()
