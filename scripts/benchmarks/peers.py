"""The peers' training steps, as their own scripts do them, in a plain loop and on images that lie ready in memory."""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from benchmarks.setting import Contender, Setting

INSTALL = "pip install -e '.[bench]'"


def diffusers(setting: Setting, precision: str, checkpointing: bool = False) -> Contender:
    """``examples/unconditional_image_generation/train_unconditional.py`` with --use_ema and google/ddpm-cifar10-32's
    network.
    """
    from diffusers import DDPMScheduler, UNet2DModel
    from diffusers.optimization import get_scheduler
    from diffusers.training_utils import EMAModel

    narrow, wide = setting.channels, 2 * setting.channels
    net = UNet2DModel(
        sample_size=setting.size,
        layers_per_block=2,
        block_out_channels=(narrow, wide, wide, wide),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=None,
        flip_sin_to_cos=False,
        freq_shift=1,
        norm_eps=1e-6,
        dropout=setting.dropout,
    ).to(setting.device)
    net.train()
    if checkpointing:
        net.enable_gradient_checkpointing()
    if setting.compile:
        net.compile()
    scheduler = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear")
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8)
    lr_scheduler = get_scheduler("cosine", optimizer, num_warmup_steps=500, num_training_steps=100_000)
    ema = EMAModel(net.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
    images = setting.images()

    def step() -> float:
        noise = torch.randn(images.shape, dtype=torch.float32, device=images.device)
        times = torch.randint(0, 1000, (len(images),), device=images.device).long()
        noisy = scheduler.add_noise(images, noise, times)
        with setting.autocast(precision):
            output = net(noisy, times).sample
        loss = F.mse_loss(output.float(), noise.float())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        lr_scheduler.step()
        optimizer.zero_grad()
        ema.step(net.parameters())
        return loss.detach().item()  # for the script's progress bar

    return Contender("diffusers", precision, net, step)


def denoising_diffusion_pytorch(setting: Setting, precision: str, checkpointing: bool = False) -> Contender:
    """Its ``Trainer.train``; attention in full at half the size and in the middle, linear elsewhere, which it always
    has.
    """
    if checkpointing:
        raise NotImplementedError("has no checkpointing")
    from denoising_diffusion_pytorch import GaussianDiffusion, Unet
    from ema_pytorch import EMA

    full = (False, True, False, False)
    net = Unet(dim=setting.channels, dim_mults=(1, 2, 2, 2), full_attn=full, dropout=setting.dropout)
    diffusion = GaussianDiffusion(net, image_size=setting.size, timesteps=1000).to(setting.device)
    diffusion.train()
    if setting.compile:
        net.compile()
    optimizer = torch.optim.Adam(diffusion.parameters(), lr=1e-4, betas=(0.9, 0.99))
    ema = EMA(diffusion, beta=0.995, update_every=10).to(setting.device)
    images = (setting.images() + 1) / 2

    def step() -> float:
        with setting.autocast(precision):
            loss = diffusion(images)
            shown = loss.item()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(diffusion.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.update()
        return shown

    return Contender("denoising-diffusion-pytorch", precision, net, step)


PEERS: dict[str, Callable[..., Contender]] = {
    "diffusers": diffusers,
    "denoising-diffusion-pytorch": denoising_diffusion_pytorch,
}
