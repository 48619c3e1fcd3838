import pytest
import torch

from ddpm_lightning.diffusion.noise import NoiseBetween, PerImageNoise, slerp
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


def test_noise_between_two_seeds_begins_and_ends_with_theirs_exactly():
    between = NoiseBetween((3, 8), [0.0, 0.25, 0.5, 1.0])
    for _ in range(3):  # in every draw of a run
        frames = between.randn((1, 8, 8))
    first, second = (PerImageNoise([seed]) for seed in (3, 8))
    for _ in range(3):
        ends = first.randn((1, 8, 8))[0], second.randn((1, 8, 8))[0]
    assert torch.equal(frames[0], ends[0])
    assert torch.equal(frames[3], ends[1])


def test_noise_between_has_the_norm_of_noise():
    a, b = torch.randn(2, 3, 32, 32)
    frames = slerp(a, b, torch.linspace(0, 1, 9))
    norms = frames.flatten(1).norm(dim=1) / a.numel() ** 0.5
    assert norms.tolist() == pytest.approx([1] * 9, abs=0.03)
    straight = (a + b) / 2  # which has not
    assert straight.norm() / a.numel() ** 0.5 < 0.75
    angles = [torch.cosine_similarity(frames[i].flatten(), a.flatten(), dim=0).arccos().item() for i in range(9)]
    steps = [y - x for x, y in zip(angles, angles[1:], strict=False)]
    assert steps == pytest.approx([angles[-1] / 8] * 8, abs=2e-3)


def test_between_a_noise_and_itself_there_is_nothing_else():
    a = torch.randn(1, 4, 4)
    torch.testing.assert_close(slerp(a, a, torch.tensor([0.0, 0.3, 1.0])), a.expand(3, 1, 4, 4))
