"""This project's training step: by itself, and through its Trainer."""

from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from torch import nn

from benchmarks.setting import LAYOUTS, Contender, Setting
from ddpm_lightning.data.base import ImageDataModule, Split
from ddpm_lightning.data.resident import LabelledImages
from ddpm_lightning.diffusion.denoiser import Denoiser
from ddpm_lightning.diffusion.distance import MSE
from ddpm_lightning.diffusion.loss import denoising_loss
from ddpm_lightning.diffusion.parameterization import Epsilon
from ddpm_lightning.diffusion.schedules.linear import LinearSchedule
from ddpm_lightning.diffusion.timesteps import UniformTimesteps
from ddpm_lightning.diffusion.weighting import Uniform
from ddpm_lightning.nn.unet import UNet
from ddpm_lightning.runs import command  # noqa: F401  (its resolver, for the configuration)
from ddpm_lightning.runs.build import build
from ddpm_lightning.runs.refusal import CONF


def bare(
    setting: Setting, precision: str, checkpointing: bool = False, wrap: Callable[[UNet], nn.Module] = lambda net: net
) -> Contender:
    """Forward, backward, clipping and optimizer: no averages, no data loading, no Lightning. ``wrap`` makes of the
    network what is called, such as DDP's.
    """
    net = UNet(
        image_size=setting.size,
        base_channels=setting.channels,
        attention_resolutions=(setting.size // 2,),
        dropout=setting.dropout,
        checkpointing=checkpointing,
        channels_last=LAYOUTS[setting.layout],
    )
    if setting.compile:
        net.compile(fullgraph=True)
    called = wrap(net.to(setting.device))
    denoiser = Denoiser(called, LinearSchedule(), Epsilon(), (3, setting.size, setting.size)).to(setting.device)
    optimizer = torch.optim.Adam(denoiser.parameters(), lr=2e-4, fused=True)
    parameters, images, times = list(denoiser.parameters()), setting.images(), UniformTimesteps()

    def step() -> None:
        t, _ = times(len(images), denoiser.schedule.num_steps, images.device)
        with setting.autocast(precision):
            loss = denoising_loss(denoiser, Uniform(), MSE(), images, t, torch.randn_like(images)).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return Contender("this project, bare step", precision, net, step)


class RandomImages(ImageDataModule):
    """A set like CIFAR-10 in size, of noise."""

    def load(self, split: Split) -> LabelledImages:
        count = 50_000 if split == "train" else self.eval_batch_size
        return LabelledImages(torch.randint(0, 256, (count, *self.image_shape), dtype=torch.uint8), torch.zeros(count))


class Clock(L.Callback):
    """Reads the setting's clock before the second batch and, ``batches`` later, before another: all that a step does
    is in between, the loggers, which come after its callbacks, included."""

    def __init__(self, setting: Setting, batches: int) -> None:
        self.setting = setting
        self.batches = batches
        self.read: list[float] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step in (1, 1 + self.batches):
            self.read.append(self.setting.clock())


class TrainerRun:
    """A run as ``scripts/train.py`` makes it: Trainer, all callbacks, both loggers, data in memory.

    Validation, sample grids and checkpoints, which come thousands of steps apart, are not in the seconds. The loggers
    are due once in them, as if every 12th step by default, where a run has every 50th.
    """

    name = "this project, Trainer"

    def __init__(self, setting: Setting, precision: str, folder: Path) -> None:
        self.setting = setting
        self.precision = precision
        self.steps = 3 * setting.steps
        self.cfg = configuration(setting, precision, folder, self.steps)
        self.module = build(self.cfg, "module")
        self.data = build(self.cfg, "data")
        self.net: torch.nn.Module = self.module.denoiser.net

    def seconds(self) -> float:
        """Of a step, on average."""
        clock = Clock(self.setting, self.steps)
        callbacks, loggers = (
            [made for made in build(self.cfg, key).values() if made] for key in ("callbacks", "logger")
        )
        trainer = build(self.cfg, "trainer", callbacks=[*callbacks, clock], logger=loggers)
        self.data.trainer, trainer.datamodule = trainer, self.data
        with redirect_stdout(StringIO()):  # the progress bar
            trainer.fit(self.module, self.data)
        torch.use_deterministic_algorithms(False)  # which the Trainer has set, for the others, too
        first, last = clock.read
        return (last - first) / self.steps


def configuration(setting: Setting, precision: str, folder: Path, steps: int) -> DictConfig:
    """That of CIFAR-10's recipe, but for the setting's sizes, random images, and a length."""
    kind, _, index = setting.device.partition(":")
    layout = {None: "null", True: "true", False: "false"}[LAYOUTS[setting.layout]]
    overrides = [
        *("experiment=cifar10_ddpm", "data._target_=benchmarks.ours.RandomImages", "data.root=none"),
        *(f"data.image_size={setting.size}", f"data.batch_size={setting.batch}", f"output_dir='{folder}'"),
        *(f"model.base_channels={setting.channels}", f"model.attention_resolutions=[{setting.size // 2}]"),
        *(f"model.dropout={setting.dropout}", f"model.channels_last={layout}", "callbacks.samples=null"),
        *(f"module.compile={str(setting.compile).lower()}", f"trainer.precision={precision}"),
        *(f"trainer.max_steps={steps + 2}", f"trainer.log_every_n_steps={steps}"),
        *(
            f"trainer.accelerator={'cpu' if kind == 'cpu' else 'gpu'}",
            f"trainer.devices={f'[{index}]' if index else 1}",
        ),
        *("+trainer.limit_val_batches=0", "callbacks.best=null", "callbacks.checkpoint.keep=0"),
    ]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", overrides=[o.removeprefix("+") for o in overrides])
