import pytest
import torch

from ddpm_lightning.diffusion.noise import PerImageNoise
from ddpm_lightning.diffusion.timesteps import UniformTimesteps


def test_an_images_noise_depends_on_its_seed_alone():
    together, apart = PerImageNoise([7, 8, 9]), PerImageNoise([8])
    for _ in range(3):
        assert torch.equal(together.randn((1, 4, 4))[1], apart.randn((1, 4, 4))[0])
    assert not torch.equal(PerImageNoise([7]).randn((4,)), PerImageNoise([8]).randn((4,)))


def test_noise_is_standard_normal():
    noise = PerImageNoise(range(500)).randn((1, 16, 16))
    assert noise.mean().abs() < 0.01
    assert abs(noise.std() - 1) < 0.01


def test_another_batch_is_refused():
    with pytest.raises(ValueError, match="2 seeds cannot serve a batch of 3"):
        PerImageNoise([1, 2]).randn_like(torch.zeros(3, 1, 2, 2))


def test_uniform_times_reach_both_ends_equally():
    t, weight = UniformTimesteps()(100_000, 10, torch.device("cpu"))
    counts = t.bincount(minlength=11)
    assert counts[0] == 0
    assert len(counts) == 11
    assert (counts[1:] / 10_000 - 1).abs().max() < 0.05
    assert (weight == 1).all()
