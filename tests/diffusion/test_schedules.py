import pytest
import torch
from conftest import group_options
from hydra.utils import instantiate
from omegaconf import OmegaConf

from ddpm_lightning.diffusion.schedules.base import NoiseSchedule
from ddpm_lightning.diffusion.schedules.cosine import CosineSchedule
from ddpm_lightning.diffusion.schedules.linear import LinearSchedule
from ddpm_lightning.diffusion.schedules.sigmoid import SigmoidSchedule
from ddpm_lightning.runs.refusal import CONF

KS = (0, 1, 250, 500, 750, 999)
# from an independent implementation in float64; k = t - 1
LINEAR = (
    0.9999,
    0.9997800920720721,
    0.5214230306185275,
    0.07779665836502389,
    0.003300158361569426,
    4.035829765375676e-05,
)
COSINE = (
    *(0.999958715775178, 0.9999125759273678, 0.8458879864968832),
    *(0.492285172448803, 0.1431786464260981, 2.428766907034857e-09),
)


@pytest.mark.parametrize(("schedule", "known"), [(LinearSchedule(), LINEAR), (CosineSchedule(), COSINE)])
def test_alpha_bar_has_the_published_values(schedule, known):
    for k, value in zip(KS, known, strict=True):
        assert schedule.alpha_bar[k + 1].item() == pytest.approx(value, rel=1e-11)


@pytest.mark.parametrize(
    ("name", "made"), [("linear", LinearSchedule()), ("cosine", CosineSchedule()), ("sigmoid", SigmoidSchedule())]
)
def test_the_configured_schedules_are_the_published_ones(name, made):
    configured = instantiate(OmegaConf.load(CONF / "schedule" / f"{name}.yaml"))
    assert torch.equal(configured.alpha_bar, made.alpha_bar)


def test_cosine_caps_exactly_one_beta():
    alpha_bar = CosineSchedule().alpha_bar
    betas = 1 - alpha_bar[1:] / alpha_bar[:-1]
    assert (betas > 0.999 - 1e-9).sum() == 1
    assert betas.max().item() == pytest.approx(0.999)


def test_sigmoid_is_half_way_in_the_middle_and_ends_at_the_cap():
    alpha_bar = SigmoidSchedule().alpha_bar
    assert alpha_bar[500].item() == pytest.approx(0.5, abs=1e-12)
    for t in (100, 300, 700, 900):  # point symmetry about the middle
        assert alpha_bar[t].item() + alpha_bar[1000 - t].item() == pytest.approx(1, abs=1e-6)
    assert 0 < alpha_bar[-1] < 1e-5


@pytest.mark.parametrize("name", group_options("schedule"))
@pytest.mark.parametrize("num_steps", [1, 2, 10, 100, 1000, 4000])
def test_every_schedule_works_for_any_number_of_steps(name, num_steps):
    schedule = instantiate(OmegaConf.load(CONF / "schedule" / f"{name}.yaml"), num_steps=num_steps)
    assert schedule.num_steps == num_steps
    alpha, sigma = schedule(torch.arange(num_steps + 1))
    assert alpha[0] == 1
    assert sigma[0] == 0
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones(num_steps + 1))
    assert schedule.alpha_bar[-1] < 0.01


@pytest.mark.parametrize("num_steps", [250, 500, 4000])
def test_the_linear_schedule_ends_as_noisy_for_other_numbers_of_steps(num_steps):
    last, usual = LinearSchedule(num_steps).alpha_bar[-1], LinearSchedule().alpha_bar[-1]
    assert abs(last.log() - usual.log()) < 0.35  # without the scaling by 1000 / T: 5 and more


def test_levels_of_ints_are_exact_and_of_tensors_follow_the_batch():
    schedule = CosineSchedule()
    t = torch.tensor([0, 3, 1000])
    level = schedule(t)
    assert level.alpha.dtype == torch.float32
    for i, time in enumerate(t.tolist()):
        exact = schedule(time)
        assert exact.alpha.dtype == torch.float64
        assert level.alpha[i] == exact.alpha.float()
        assert level.sigma[i] == exact.sigma.float()


def test_schedules_add_nothing_to_checkpoints_and_move_with_the_module():
    schedule = LinearSchedule(10)
    assert not schedule.state_dict()
    assert schedule.to("meta").alpha.device.type == "meta"
    assert schedule(3).alpha.device.type == "cpu"


@pytest.mark.parametrize(
    "alpha_bar", [[0.9, 0.5], [1.0, 0.5, 0.5], [1.0, 0.5, 0.6], [1.0, -0.1], [1.0], [1.0, float("nan")]]
)
def test_impossible_tables_are_refused(alpha_bar):
    with pytest.raises(ValueError, match="alpha_bar must"):
        NoiseSchedule(torch.tensor(alpha_bar, dtype=torch.float64))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LinearSchedule(0), "num_steps must be an integer of at least 1, got 0"),
        (lambda: LinearSchedule(beta_end=1.5), r"beta_end must lie in \[beta_start, 1\).*got 1.5"),
        (lambda: LinearSchedule(beta_start=0.0), "beta_start must lie in"),
        (lambda: LinearSchedule(beta_start=0.5), "beta_end must lie in"),
        (lambda: CosineSchedule(offset=1.0), "offset must lie in"),
        (lambda: SigmoidSchedule(start=3.0), "end must be above start"),
        (lambda: SigmoidSchedule(tau=0.0), "tau must be above 0"),
    ],
)
def test_impossible_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_linear_betas_are_capped_below_twenty_steps():
    alpha_bar = LinearSchedule(10).alpha_bar
    betas = 1 - alpha_bar[1:] / alpha_bar[:-1]
    assert betas.max().item() == pytest.approx(0.999, rel=1e-9)
    assert betas[3].item() == pytest.approx((1e-4 + 3 / 9 * 0.0199) * 100, rel=1e-9)


@pytest.mark.parametrize("name", group_options("schedule"))
@pytest.mark.parametrize("num_steps", [2, 50, 1000])
def test_zero_terminal_snr_ends_in_noise_and_leaves_the_first_step(name, num_steps):
    node = OmegaConf.load(CONF / "schedule" / f"{name}.yaml")
    plain, moved = (instantiate(node, num_steps=num_steps, zero_terminal_snr=zero) for zero in (False, True))
    assert moved.ends_in_noise
    assert not plain.ends_in_noise
    assert (moved(num_steps).alpha, moved(num_steps).sigma) == (0, 1)
    assert moved.alpha_bar[1].item() == pytest.approx(plain.alpha_bar[1].item(), rel=1e-12)
    # Lin et al. (2024), algorithm 1, with their indices
    root = plain.alpha_bar[1:].sqrt()
    first, last = root[0].clone(), root[-1].clone()
    root = (root - last) * (first / (first - last))
    torch.testing.assert_close(moved.alpha_bar[1:], root**2)


def test_zero_terminal_snr_needs_two_steps():
    with pytest.raises(ValueError, match="zero_terminal_snr must be false for num_steps=1, got true"):
        LinearSchedule(1, zero_terminal_snr=True)
