"""Gradients of a small network: by two processes, each with half of a batch, and by one with the whole."""

import os
import socket
from pathlib import Path

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from ddpm_lightning.diffusion.denoiser import Denoiser
from ddpm_lightning.diffusion.distance import MSE
from ddpm_lightning.diffusion.loss import denoising_loss
from ddpm_lightning.diffusion.parameterization import Epsilon
from ddpm_lightning.diffusion.schedules.linear import LinearSchedule
from ddpm_lightning.diffusion.weighting import Uniform
from ddpm_lightning.nn.unet import UNet

BATCH = 8


def gradients(part: slice, wrap=lambda net: net) -> list[torch.Tensor]:
    torch.manual_seed(0)
    net = UNet(8, base_channels=8, channel_mults=(1, 2), attention_resolutions=(4,), dropout=0.0)
    for parameter in net.parameters():  # zero-initialised layers hide what feeds them
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    images, noise, t = torch.randn(BATCH, 3, 8, 8), torch.randn(BATCH, 3, 8, 8), torch.randint(1, 1001, (BATCH,))
    denoiser = Denoiser(wrap(net), LinearSchedule(), Epsilon(), (3, 8, 8))
    denoising_loss(denoiser, Uniform(), MSE(), images[part], t[part], noise[part]).mean().backward()
    return [parameter.grad for parameter in net.parameters()]


def joint_gradients() -> list[torch.Tensor]:
    return gradients(slice(BATCH))


def shared_gradients(folder: Path) -> list[torch.Tensor]:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    spawn(_process, (port, folder), nprocs=2)
    return torch.load(folder / "gradients.pt")


def _process(rank: int, port: int, folder: Path) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    half = BATCH // 2
    found = gradients(slice(rank * half, (rank + 1) * half), DistributedDataParallel)
    if rank == 0:
        torch.save(found, folder / "gradients.pt")
    dist.destroy_process_group()
