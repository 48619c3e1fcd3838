"""Weights against the published formulas, in SNR by hand."""

import pytest
import torch

from ddpm_lightning.diffusion.schedules.linear import LinearSchedule
from ddpm_lightning.diffusion.weighting import P2, ClampedSNR, InverseTime, LinearTime, MinSNR, SoftMinSNR, Uniform

T = torch.tensor([1, 50, 101, 300, 500, 1000])
LEVEL = LinearSchedule()(T)
SNR = (LinearSchedule().alpha_bar / (1 - LinearSchedule().alpha_bar))[T].float()


@pytest.mark.parametrize(
    ("weighting", "expected"),
    [
        (Uniform(), torch.ones(6)),
        (ClampedSNR(0.1, 1.0), SNR.clamp(0.1, 1.0)),
        (ClampedSNR(0.0, 5.0), SNR.clamp(0.0, 5.0)),
        (LinearTime(), T / 1000),
        (InverseTime(), 1 / T),
        (InverseTime(0.5), 500 / T),
        (MinSNR(5.0), torch.minimum(SNR, torch.tensor(5.0)) / SNR),
        # Crowson et al.: SNR gamma / (SNR + gamma) on errors of x_0, that is over SNR on those of the noise
        (SoftMinSNR(4.0), SNR * 4.0 / (SNR + 4.0) / SNR),
        (P2(), 1 / (1 + SNR)),
        (P2(k=2.0, gamma=0.5), 1 / (2 + SNR).sqrt()),
    ],
)
def test_weights_are_the_published_ones(weighting, expected):
    torch.testing.assert_close(weighting(LEVEL, T / 1000), expected, rtol=1e-4, atol=1e-9)


def test_the_soft_minimum_stays_below_the_hard_one_and_is_half_of_it_at_gamma():
    snr = torch.tensor([0.01, 1.0, 5.0, 100.0])
    level = type(LEVEL)((snr / (1 + snr)).sqrt(), (1 / (1 + snr)).sqrt())
    hard, soft = MinSNR(5.0)(level, snr), SoftMinSNR(5.0)(level, snr)
    assert (soft < hard).all()
    assert soft[2].item() == pytest.approx(hard[2].item() / 2, rel=1e-5)
    assert (soft / hard)[[0, 3]].tolist() == pytest.approx([1, 1], abs=0.06)


def test_weights_at_pure_noise_are_finite():
    level = LinearSchedule(10, zero_terminal_snr=True)(torch.tensor([10]))
    for weighting in (Uniform(), ClampedSNR(), LinearTime(), InverseTime(), MinSNR(), SoftMinSNR(), P2()):
        weight = weighting(level, torch.ones(1))
        assert weight.isfinite().all()
        assert weight > 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ClampedSNR(2.0, 1.0), r"min must lie in \[0, max\] = \[0, 1.0\], got 2.0"),
        (lambda: ClampedSNR(0.0, 0.0), "max must be above 0, got 0.0"),
        (lambda: InverseTime(0.0), "scale must be above 0, got 0.0"),
        (lambda: SoftMinSNR(-1.0), "gamma must be above 0, got -1.0"),
        (lambda: P2(0.0), "k must be above 0, got 0.0"),
        (lambda: P2(1.0, -1.0), "gamma must be at least 0, got -1.0"),
    ],
)
def test_impossible_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
