"""What is about to run, in a few lines: sizes, cost, and length."""

import copy
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from ddpm_lightning.data.base import ImageDataModule
from ddpm_lightning.module import DiffusionModule, total_steps


def describe(name: str, data: ImageDataModule, module: DiffusionModule, trainer: Any) -> list[str]:
    """The lines, for a run of this name."""
    net = module.denoiser.net
    count, held_out = (len(data.split(split).images) for split in ("train", "val"))
    devices, accumulated = trainer.world_size, trainer.accumulate_grad_batches
    batch = data.batch_size * devices * accumulated
    steps = total_steps(trainer) or 0
    parts = ", ".join(f"{part} {count_parameters(child):.3f}" for part, child in net.named_children())
    shape = "x".join(map(str, data.image_shape))
    classes = f"{data.num_classes} classes" if data.num_classes else "unlabelled"
    return [
        f"{name}: {count} training and {held_out} held-out images, {shape}, {classes}",
        f"network {count_parameters(net):.3f} M parameters ({parts}),"
        f" {flops(module) / 1e9:.4g} GFLOP forward per image",
        f"batch   {batch} = {data.batch_size} x {devices} devices x {accumulated} accumulated; {steps} steps,"
        f" {steps * batch / count:.1f} epochs, {steps * batch} images",
        f"device  {trainer.strategy.root_device.type}, {trainer.precision}",
    ]


def count_parameters(module: torch.nn.Module) -> float:
    """In millions."""
    return sum(parameter.numel() for parameter in module.parameters()) / 1e6


def flops(module: DiffusionModule) -> int:
    """Floating-point operations of the network's forward pass for one image."""
    net = copy.deepcopy(module.denoiser.net).to("meta")
    image, time = torch.empty(1, *module.denoiser.image_shape, device="meta"), torch.empty(1, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(image, time, None)
    return counter.get_total_flops()
