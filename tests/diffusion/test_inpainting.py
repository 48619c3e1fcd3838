import pytest
import torch
from conftest import GaussianDenoiser, group_options
from hydra.utils import instantiate
from omegaconf import OmegaConf

from ddpm_lightning.diffusion.forward import diffuse, transition_variance
from ddpm_lightning.diffusion.samplers.ancestral import AncestralSampler
from ddpm_lightning.diffusion.samplers.inpainting import Inpainting, renoise
from ddpm_lightning.diffusion.schedules.linear import LinearSchedule
from ddpm_lightning.runs.refusal import CONF


class Correlated:
    """E[x_0 | x_t] for two pixels with variance 1 and correlation rho, in closed form."""

    def __init__(self, schedule, rho):
        self.schedule = schedule
        self.cov = torch.tensor([[1.0, rho], [rho, 1.0]])

    def __call__(self, x_t, t, label=None):
        alpha, sigma = (scale.float() for scale in self.schedule(t))
        gain = alpha * self.cov @ torch.linalg.inv(alpha**2 * self.cov + sigma**2 * torch.eye(2))
        return (x_t.flatten(1) @ gain.T).view_as(x_t)


def run(inpainting, denoiser, count):
    for stage in inpainting.trajectory(denoiser, torch.randn(count, 1, 1, 2), None, torch.randn_like):
        x = stage.x_s
    return x, stage


def test_what_is_filled_in_agrees_with_what_is_known_the_better_the_more_often_it_is_tried():
    """Given the left pixel, the right one is N(rho v, 1 - rho^2). Without repetitions RePaint falls short of it."""
    rho, v = 0.9, 1.0
    denoiser = Correlated(LinearSchedule(200), rho)
    image, known = torch.tensor([[[v, 0.0]]]), torch.tensor([[True, False]])
    sampler = AncestralSampler(50, clip_x0=False, variance="small")
    means, stds = [], []
    for resamples in (1, 20):
        x, _ = run(Inpainting(sampler, image, known, 5, resamples), denoiser, 2000)
        assert (x[..., 0] == v).all()
        means.append(x[..., 1].mean().item())
        stds.append(x[..., 1].std().item())
    assert abs(means[1] - rho * v) < 0.05
    assert abs(means[0] - rho * v) > 2 * abs(means[1] - rho * v)
    assert stds[1] == pytest.approx((1 - rho**2) ** 0.5, rel=0.15)


@pytest.mark.parametrize("name", group_options("sampler"))
def test_known_pixels_are_kept_exactly_by_every_sampler(name):
    schedule = LinearSchedule(50)
    sampler = instantiate(OmegaConf.load(CONF / "sampler" / f"{name}.yaml"), num_steps=12)
    image, known = torch.rand(3, 8, 8) * 2 - 1, torch.rand(8, 8) > 0.5
    inpainting = Inpainting(sampler, image, known, jump=5, resamples=3)
    stages = list(
        inpainting.trajectory(GaussianDenoiser(schedule, 1.0), torch.randn(2, 3, 8, 8), None, torch.randn_like)
    )
    x = stages[-1].x_s
    assert torch.equal(x[:, :, known], image[:, known].expand(2, -1, -1))
    assert not torch.equal(x[0, :, ~known], x[1, :, ~known])
    assert (stages[-1].s, stages[-1].moves_done, len(stages)) == (0, inpainting.num_moves, inpainting.num_moves)
    assert x.isfinite().all()


def test_one_attempt_with_nothing_known_is_the_plain_sampler():
    denoiser, x_T = GaussianDenoiser(LinearSchedule(50), 0.5), torch.randn(2, 1, 4, 4)
    sampler = instantiate(OmegaConf.load(CONF / "sampler" / "ddim.yaml"), num_steps=10)
    nothing = Inpainting(sampler, torch.zeros(1, 4, 4), torch.zeros(4, 4), jump=100, resamples=1)
    *_, last = nothing.trajectory(denoiser, x_T, None, torch.randn_like)
    torch.testing.assert_close(last.x_s, sampler(denoiser, x_T))


def test_noise_put_back_gives_the_marginal_of_the_later_time():
    schedule = LinearSchedule()
    s, t = 400, 500
    x_0 = torch.full((20_000, 1, 2, 2), 0.7)
    x_t = renoise(diffuse(x_0, torch.randn_like(x_0), schedule(s)), torch.randn_like(x_0), schedule(s), schedule(t))
    assert x_t.mean().item() == pytest.approx(0.7 * schedule(t).alpha.item(), abs=0.01)
    assert x_t.std().item() == pytest.approx(schedule(t).sigma.item(), rel=0.01)
    x_s = torch.full((20_000, 1, 2, 2), 1.0)
    alone = renoise(x_s, torch.randn_like(x_s), schedule(s), schedule(t))
    assert alone.std().item() == pytest.approx(transition_variance(schedule(t), schedule(s)).sqrt().item(), rel=0.02)


def test_impossible_settings_are_refused():
    sampler = AncestralSampler(5)
    with pytest.raises(ValueError, match="jump must be at least 1, got 0"):
        Inpainting(sampler, torch.zeros(1, 2, 2), torch.zeros(2, 2), jump=0)
    with pytest.raises(ValueError, match="resamples must be at least 1, got 0"):
        Inpainting(sampler, torch.zeros(1, 2, 2), torch.zeros(2, 2), resamples=0)
