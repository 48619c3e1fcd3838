from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_lightning.callbacks.ema import EMA
from ddpm_lightning.callbacks.sample_grid import SampleGrid
from ddpm_lightning.diffusion.denoiser import Denoiser
from ddpm_lightning.diffusion.distance import MSE
from ddpm_lightning.diffusion.guidance import GuidedDenoiser
from ddpm_lightning.diffusion.loss import Denoising
from ddpm_lightning.diffusion.parameterization import Epsilon
from ddpm_lightning.diffusion.samplers.ddim import DDIMSampler
from ddpm_lightning.diffusion.schedules.linear import LinearSchedule
from ddpm_lightning.diffusion.timesteps import UniformTimesteps
from ddpm_lightning.diffusion.weighting import Uniform
from ddpm_lightning.generation import generate
from ddpm_lightning.images import CAPTION_HEIGHT, grid, to_uint8
from ddpm_lightning.lr_schedules import Constant
from ddpm_lightning.module import DiffusionModule
from ddpm_lightning.nn.unet import UNet


def grid_image(picture, i):
    """The i-th image of the first row of a grid whose columns have captions."""
    top = 2 + CAPTION_HEIGHT + 2
    return picture[top : top + 48, 2 + 50 * i : 50 + 50 * i]


@pytest.mark.parametrize("guidance", [0.0, 2.0])
def test_the_picture_shows_the_averaged_weights_with_the_seeds_classes_and_guidance_asked_for(tmp_path, guidance):
    net = UNet(8, 1, base_channels=8, channel_mults=(1, 2), attention_resolutions=(4,), num_classes=3, dropout=0.5)
    module = DiffusionModule(
        Denoiser(net, LinearSchedule(50), Epsilon(), (1, 8, 8)),
        {"denoising": Denoising(Uniform(), MSE())},
        *(UniformTimesteps(), torch.optim.SGD, Constant()),
    )
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    sampler, ema = DDIMSampler(3), EMA()
    ema.averages = {"0.9999": {name: weight.detach().clone() for name, weight in module.denoiser.named_parameters()}}
    plain = module.denoiser.eval()
    steered = GuidedDenoiser(plain, guidance, null_label=3) if guidance else plain
    images = generate(steered, sampler, (1, 8, 8), range(5, 11), [0, 1, 2, 0, 0, 1])
    expected = grid(to_uint8(torch.cat(list(images))), 4, ["zero", "one", "two", "zero", "zero", "one"])

    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)  # the optimizer's own weights are others
    module.train()
    precision = SimpleNamespace(forward_context=nullcontext)
    trainer = SimpleNamespace(global_step=7, callbacks=[ema], loggers=[], precision_plugin=precision)
    trainer.datamodule = SimpleNamespace(class_names=["zero", "one", "two"])
    SampleGrid(sampler, str(tmp_path), 6, 4, 1, guidance=guidance, seed=5, strip=2).draw(trainer, module)
    picture = np.array(Image.open(tmp_path / "step-0000007.png"))
    assert np.array_equal(picture, expected.permute(1, 2, 0).numpy())
    strip = np.array(Image.open(tmp_path / "denoising" / "step-0000007.png"))
    cells = 50  # pixels from one image to the next
    for row in range(2):  # the way ends in the images of the grid, which stand below their captions
        end = strip[2 + row * cells : cells + row * cells, -cells:-2]
        assert np.array_equal(end, grid_image(picture, row)), row
        start = strip[2 + row * cells : cells + row * cells, 2:cells]
        assert start.std() > 60  # pure noise
    assert module.training
    assert net.training
