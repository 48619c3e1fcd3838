from typing import ClassVar

import pytest
import torch
from conftest import GaussianDenoiser

from ddpm_lightning.diffusion.forward import noise_from_x0
from ddpm_lightning.diffusion.guidance import DynamicThreshold, GuidedDenoiser, Watched
from ddpm_lightning.diffusion.parameterization import Estimate
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


def test_guidance_on_two_gaussians_has_the_closed_form_of_the_ode():
    """Class N(m, c^2), all data N(0, S^2): along the flow the guided deviation ends at c (c / S)^w."""
    schedule, c, S, w = LinearSchedule(), 0.2, 0.5, 0.7
    guided = GuidedDenoiser(TwoGaussians(schedule, c**2, S**2), w, NULL)
    x_T = torch.randn(200, 1, 4, 4)
    x = HeunSampler(200, clip_x0=False)(guided, x_T, torch.zeros(200, dtype=torch.long))
    # not quite: at the last time the schedule leaves sigma / alpha = 157 in place of infinity
    assert x.std().item() == pytest.approx(c * (c / S) ** w, rel=0.02)


class Counting(TwoGaussians):
    sizes: ClassVar[list[int]] = []

    def __call__(self, x_t, t, label=None):
        self.sizes.append(len(x_t))
        return super().__call__(x_t, t, label)


def test_a_learned_variance_is_that_of_the_conditional_pass(denoiser):
    class Varied(TwoGaussians):
        def estimate(self, x_t, t, label=None):
            fraction = (label == NULL).float().view(-1, 1, 1, 1).expand_as(x_t)  # 1 without a label
            return Estimate(self(x_t, t, label), fraction)

    varied = Varied(denoiser.schedule, 0.04, 0.25)
    x_t, labels = torch.randn(3, 1, 2, 2), torch.zeros(3, dtype=torch.long)
    estimate = GuidedDenoiser(varied, 1.5, NULL).estimate(x_t, 300, labels)
    assert (estimate.fraction == 0).all()
    torch.testing.assert_close(estimate.x_0, GuidedDenoiser(denoiser, 1.5, NULL)(x_t, 300, labels))


def test_guidance_in_an_interval_is_guidance_there_and_none_elsewhere_at_the_price_of_one_pass():
    schedule = LinearSchedule()
    plain = Counting(schedule, 0.04, 0.25)
    x_t, labels = torch.randn(3, 1, 2, 2), torch.zeros(3, dtype=torch.long)
    ratio = {t: (schedule(t).sigma / schedule(t).alpha).item() for t in (10, 400, 900)}
    limited = GuidedDenoiser(plain, 2.0, NULL, interval=(ratio[400] - 0.01, ratio[400] + 0.01))
    always = GuidedDenoiser(plain, 2.0, NULL)
    for t in ratio:
        plain.sizes.clear()
        found = limited(x_t, t, labels)
        assert plain.sizes == [6 if t == 400 else 3]
        torch.testing.assert_close(found, (always if t == 400 else plain)(x_t, t, labels))
    times = torch.tensor([10, 400, 900])  # one for each image
    each = torch.stack([limited(x_t[i : i + 1], t, labels[:1])[0] for i, t in enumerate(ratio)])
    torch.testing.assert_close(limited(x_t, times, labels), each)


def test_guidance_holds_where_nothing_is_left_of_the_image():
    schedule = LinearSchedule(50, zero_terminal_snr=True)
    plain = TwoGaussians(schedule, 0.04, 0.25)
    plain.of_all.mean = 0.5  # or both would estimate 0 there
    x_t, labels = torch.randn(3, 1, 2, 2), torch.zeros(3, dtype=torch.long)
    for t in (50, torch.full((3,), 50)):
        guided = GuidedDenoiser(plain, 2.0, NULL)(x_t, t, labels)
        torch.testing.assert_close(guided, 3 * plain(x_t, t, labels) - 2 * plain(x_t, t, labels + NULL))
        limited = GuidedDenoiser(plain, 2.0, NULL, interval=[0.1, 5.0])(x_t, t, labels)
        torch.testing.assert_close(limited, plain(x_t, t, labels))


def test_rescaled_guidance_goes_image_by_image():
    schedule = LinearSchedule()

    class Uneven(TwoGaussians):
        def __call__(self, x_t, t, label=None):
            strength = torch.tensor([1.0, 3.0]).repeat(len(x_t) // 2).view(-1, 1, 1, 1)
            null = (label == NULL).view(-1, 1, 1, 1)
            return torch.where(null, x_t.flip(-1), strength * x_t)

    plain = Uneven(schedule, 0.04, 0.25)
    x_t, labels = torch.randn(2, 1, 8, 8), torch.zeros(2, dtype=torch.long)
    rescaled = GuidedDenoiser(plain, 2.0, NULL, rescale=1.0)(x_t, 300, labels)
    torch.testing.assert_close(rescaled.flatten(1).std(1), plain(x_t, 300, labels).flatten(1).std(1))
    flat = GuidedDenoiser(lambda x, t, label: torch.zeros_like(x), 2.0, NULL, rescale=1.0)
    flat.denoiser.__dict__["schedule"] = schedule
    assert flat(x_t, 300, labels).isfinite().all()


def test_a_threshold_limits_estimates_with_a_learned_variance_too():
    class Wide:
        def estimate(self, x_t, t, label=None):
            return Estimate(3 * x_t, x_t)

    x = torch.randn(2, 1, 8, 8)
    limited = DynamicThreshold(Wide(), 0.9).estimate(x, 5)
    assert limited.x_0.abs().max() <= 1
    assert torch.equal(limited.fraction, x)


def test_rescaled_guidance_has_the_deviation_of_the_conditional_estimate():
    plain = TwoGaussians(LinearSchedule(), 0.04, 0.25)
    x_t, labels = torch.randn(5, 3, 8, 8), torch.zeros(5, dtype=torch.long)
    conditional, full = plain(x_t, 300, labels), GuidedDenoiser(plain, 3.0, NULL)(x_t, 300, labels)
    whole, half = (GuidedDenoiser(plain, 3.0, NULL, rescale=r)(x_t, 300, labels) for r in (1.0, 0.5))
    torch.testing.assert_close(whole.flatten(1).std(1), conditional.flatten(1).std(1))
    torch.testing.assert_close(half, (whole + full) / 2)


def test_dynamic_thresholds_limit_each_image_by_its_own_quantile():
    x_0 = torch.stack([torch.linspace(-3, 3, 101), torch.linspace(-0.5, 0.5, 101)]).view(2, 1, 1, 101)

    def estimator(x_t, t, label=None):
        return x_0

    limited = DynamicThreshold(estimator, 0.9)(x_0, 5)
    s = x_0[0].abs().flatten().sort().values[90].item()
    torch.testing.assert_close(limited[0], x_0[0].clamp(-s, s) / s, rtol=1e-3, atol=1e-3)
    assert torch.equal(limited[1], x_0[1])  # already within


def test_a_watched_denoiser_keeps_its_newest_estimate(denoiser):
    watched = Watched(denoiser)
    x_t, labels = torch.randn(3, 1, 2, 2), torch.zeros(3, dtype=torch.long)
    assert torch.equal(watched(x_t, 7, labels), denoiser(x_t, 7, labels))
    assert torch.equal(watched.x_0, denoiser(x_t, 7, labels))
    assert watched.schedule is denoiser.schedule


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GuidedDenoiser(None, 1.0, NULL, interval=[3.0, 1.0]), "interval must be two numbers, 0 <= low < high"),
        (lambda: GuidedDenoiser(None, 1.0, NULL, rescale=2.0), r"rescale must lie in \[0, 1\], got 2.0"),
        (lambda: DynamicThreshold(None, 0.0), r"quantile must lie in \(0, 1\], got 0.0"),
    ],
)
def test_impossible_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
