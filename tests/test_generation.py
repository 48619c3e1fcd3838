import torch

from ddpm_lightning.diffusion.denoiser import Denoiser
from ddpm_lightning.diffusion.parameterization import Epsilon
from ddpm_lightning.diffusion.samplers.ancestral import AncestralSampler
from ddpm_lightning.diffusion.schedules.linear import LinearSchedule
from ddpm_lightning.generation import generate
from ddpm_lightning.images import to_uint8
from ddpm_lightning.nn.unet import UNet


def denoiser():
    net = UNet(8, 1, base_channels=8, channel_mults=(1, 2), attention_resolutions=(4,), num_classes=10, dropout=0.0)
    for parameter in net.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    return Denoiser(net.eval(), LinearSchedule(50), Epsilon(), (1, 8, 8))


def test_images_depend_on_their_seed_and_label_not_on_the_batch():
    net, sampler, labels = denoiser(), AncestralSampler(10), [i % 10 for i in range(7)]

    def images(seeds, labels, batch_size):
        return torch.cat(list(generate(net, sampler, (1, 8, 8), seeds, labels, batch_size)))

    whole = images(range(7), labels, 7)
    torch.testing.assert_close(images(range(7), labels, 3), whole, atol=1e-4, rtol=0)
    torch.testing.assert_close(images([5], labels[5:6], 1), whole[5:6], atol=1e-4, rtol=0)
    assert (to_uint8(images(range(7), labels, 2)).int() - to_uint8(whole).int()).abs().max() <= 1
    assert (images([5], [3], 1) - whole[5:6]).abs().max() > 0.01
    assert (images([6], labels[5:6], 1) - whole[5:6]).abs().max() > 0.01


def test_progress_counts_every_images_every_move():
    told = []
    list(generate(denoiser(), AncestralSampler(4), (1, 8, 8), range(5), [0] * 5, 2, on_move=told.append))
    assert sum(told) == 5 * 4
