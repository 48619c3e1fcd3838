import pytest
import torch
from conftest import GaussianDenoiser

from ddpm_lightning.diffusion.forward import noise_from_x0
from ddpm_lightning.diffusion.guidance import GuidedDenoiser
from ddpm_lightning.diffusion.samplers.heun import HeunSampler
from ddpm_lightning.diffusion.schedules.linear import LinearSchedule

NULL = 1


class TwoGaussians:
    """Class 0 is N(0, small), without a label the data is N(0, large)."""

    def __init__(self, schedule, small, large):
        self.schedule = schedule
        self.of_class, self.of_all = GaussianDenoiser(schedule, small), GaussianDenoiser(schedule, large)

    def __call__(self, x_t, t, label=None):
        null = (label == NULL).view(-1, *[1] * (x_t.ndim - 1))
        return torch.where(null, self.of_all(x_t, t), self.of_class(x_t, t))


@pytest.fixture
def denoiser():
    return TwoGaussians(LinearSchedule(), 0.04, 0.25)


def test_guidance_is_the_published_formula_in_the_noise(denoiser):
    x_t, w, t = torch.randn(3, 1, 2, 2), 1.5, 400
    labels = torch.zeros(3, dtype=torch.long)

    def noise(x_0):
        return noise_from_x0(x_t, x_0, denoiser.schedule(t))

    with_label, without = noise(denoiser(x_t, t, labels)), noise(denoiser(x_t, t, labels + NULL))
    guided = noise(GuidedDenoiser(denoiser, w, NULL)(x_t, t, labels))
    torch.testing.assert_close(guided, (1 + w) * with_label - w * without)


def test_no_guidance_is_the_plain_conditional_estimate(denoiser):
    x_t, labels = torch.randn(3, 1, 2, 2), torch.zeros(3, dtype=torch.long)
    torch.testing.assert_close(GuidedDenoiser(denoiser, 0.0, NULL)(x_t, 400, labels), denoiser(x_t, 400, labels))


@pytest.mark.parametrize("w", [0.0, 1.0, 2.0])
def test_guided_flow_of_gaussians_has_the_closed_form(denoiser, w):
    """Class std c, all std S: the flow multiplies the class's own end std c by (c / S)^w."""
    c, S = 0.2, 0.5
    x_T = torch.linspace(-2, 2, 9, dtype=torch.float64).view(-1, 1)
    sampler = HeunSampler(400, clip_x0=False)
    x = sampler(GuidedDenoiser(denoiser, w, NULL), x_T, torch.zeros(9, dtype=torch.long))
    slope = (x[-1] - x[0]).item() / 4
    assert slope == pytest.approx(c * (c / S) ** w, rel=0.01)


def test_times_for_each_image_are_kept_apart(denoiser):
    x_t, t = torch.randn(2, 1, 2, 2), torch.tensor([10, 900])
    labels = torch.zeros(2, dtype=torch.long)
    guided = GuidedDenoiser(denoiser, 1.0, NULL)
    one_by_one = [guided(x_t[i : i + 1], t[i : i + 1], labels[:1]) for i in range(2)]
    torch.testing.assert_close(guided(x_t, t, labels), torch.cat(one_by_one))


def test_guidance_without_labels_is_refused(denoiser):
    with pytest.raises(ValueError, match="guidance needs labels"):
        GuidedDenoiser(denoiser, 1.0, NULL)(torch.zeros(1, 1, 1, 1), 5)
