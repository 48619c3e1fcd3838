"""Samplers against data distributions for which the right answer is known."""

import math

import pytest
import torch
from conftest import GaussianDenoiser, group_options
from hydra.utils import instantiate
from omegaconf import OmegaConf

from ddpm_lightning.diffusion.forward import posterior
from ddpm_lightning.diffusion.parameterization import Estimate
from ddpm_lightning.diffusion.samplers.ancestral import AncestralSampler
from ddpm_lightning.diffusion.samplers.base import Sampler
from ddpm_lightning.diffusion.samplers.ddim import DDIMSampler
from ddpm_lightning.diffusion.samplers.dpm_solver import DPMSolverSampler
from ddpm_lightning.diffusion.samplers.heun import HeunSampler
from ddpm_lightning.diffusion.samplers.spacing import SPACINGS, visited_times
from ddpm_lightning.diffusion.samplers.unipc import UniPCSampler
from ddpm_lightning.diffusion.schedules.base import NoiseSchedule
from ddpm_lightning.diffusion.schedules.cosine import CosineSchedule
from ddpm_lightning.diffusion.schedules.linear import LinearSchedule
from ddpm_lightning.runs.refusal import CONF

NAMES = group_options("sampler")


def load(name, **kwargs) -> Sampler:
    return instantiate(OmegaConf.load(CONF / "sampler" / f"{name}.yaml"), **kwargs)


class Known:
    """A denoiser that knows x_0."""

    def __init__(self, schedule, x_0):
        self.schedule, self.x_0 = schedule, x_0

    def __call__(self, x_t, t, label=None):
        return self.x_0


class UniformLogSNR(NoiseSchedule):
    """log-SNR in equal steps, so that equal steps of time are equal steps of log-SNR."""

    def __init__(self, num_steps, low=-6.0, high=6.0):
        log_snr = torch.linspace(high, low, num_steps, dtype=torch.float64)
        super().__init__(torch.cat([torch.ones(1, dtype=torch.float64), torch.sigmoid(log_snr)]))


class TwoPoints:
    """E[x_0 | x_t] for data that is -a or a, with equal probability: a tanh(alpha a x_t / sigma^2)."""

    a = 0.8

    def __init__(self, schedule):
        self.schedule = schedule

    def __call__(self, x_t, t, label=None):
        alpha, sigma = self.schedule(t).like(x_t)
        return self.a * torch.tanh(alpha * self.a * x_t / sigma**2)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("num_steps", [1, 2, 3, 10, 100])
@pytest.mark.parametrize("schedule", [LinearSchedule(100), CosineSchedule(100)])
def test_an_oracle_that_knows_the_image_is_reproduced(name, num_steps, schedule):
    x_0 = torch.rand(2, 1, 4, 4) * 2 - 1
    result = load(name, num_steps=num_steps)(Known(schedule, x_0), torch.randn_like(x_0))
    torch.testing.assert_close(result, x_0, atol=2e-3 if name == "ancestral" else 1e-5, rtol=0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_every_number_of_steps_works_with_every_spacing(name, spacing):
    schedule = LinearSchedule(20)
    for num_steps in range(1, 21):
        x = load(name, num_steps=num_steps, spacing=spacing)(GaussianDenoiser(schedule, 0.2), torch.randn(2, 1, 2, 2))
        assert x.isfinite().all()


def variance_of(sampler, denoiser):
    """Variance of the result over N(0, 1) starts, exactly: for Gaussian data each move is linear in x and the noise."""
    schedule = denoiser.schedule
    times = visited_times(schedule, sampler.num_steps, sampler.spacing)
    variance = 1.0
    for t, s in zip(times[:-1], times[1:], strict=True):
        start = torch.tensor([[0.0], [1.0], [0.0]], dtype=torch.float64)  # rows: nothing, x alone, noise alone
        noise = torch.tensor([[0.0], [0.0], [1.0]], dtype=torch.float64)
        moved, _ = sampler.step(denoiser, start, t, s, None, None, lambda x, noise=noise: noise)
        variance = moved[1].item() ** 2 * variance + moved[2].item() ** 2
    return variance


@pytest.mark.parametrize(
    ("variance", "num_steps", "lam", "known"),
    [
        ("small", 1000, 0.25, 0.984500845),
        ("small", 50, 0.25, 0.785680958),
        ("large", 1000, 1.0, 0.9999),
        ("large", 50, 1.0, 0.9999),
        ("large", 7, 1.0, 0.9999),
    ],
)
def test_ancestral_sampling_of_gaussian_data_has_the_known_variance(variance, num_steps, lam, known):
    """Independent derivation; it depends on the grid of times, on each variance, and on no noise in the last move."""
    sampler = AncestralSampler(num_steps, clip_x0=False, variance=variance)
    assert variance_of(sampler, GaussianDenoiser(LinearSchedule(), lam)) / lam == pytest.approx(known, rel=1e-8)


def test_ancestral_samples_have_that_variance_too():
    x = AncestralSampler(50, clip_x0=False, variance="small")(
        GaussianDenoiser(LinearSchedule(), 0.25), torch.randn(20_000, 1, 1, 1)
    )
    assert x.var().item() == pytest.approx(0.25 * 0.785680958, rel=0.04)


def test_ddim_with_eta_one_is_the_ancestral_sampler_with_small_variance():
    denoiser, x = TwoPoints(LinearSchedule(200)), torch.randn(3, 1, 2, 2, dtype=torch.float64)
    results = []
    for sampler in (DDIMSampler(20, eta=1.0), AncestralSampler(20, variance="small")):
        torch.manual_seed(5)
        results.append(sampler(denoiser, x))
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("eta", [0.25, 0.5])
def test_ddim_adds_noise_in_the_proportion_eta_and_keeps_the_total(eta):
    """x_0 and x_t being known, the noise is eta times that of the posterior, and the variance of q(x_s | x_0) stays."""
    schedule, zero, one = (
        LinearSchedule(),
        torch.zeros(1, 1, dtype=torch.float64),
        torch.ones(1, 1, dtype=torch.float64),
    )
    t, s = 700, 600
    sampler = DDIMSampler(10, clip_x0=False, eta=eta)

    def step(x_t, noise):
        return sampler.step(Known(schedule, zero), x_t, t, s, None, None, lambda x: noise)[0].item()

    fresh, kept = step(zero, one), step(one, zero)
    level_t, level_s = schedule(t), schedule(s)
    assert fresh**2 == pytest.approx(eta**2 * posterior(zero, zero, level_t, level_s).variance.item(), rel=1e-9)
    assert kept**2 * level_t.sigma.item() ** 2 + fresh**2 == pytest.approx(level_s.sigma.item() ** 2, rel=1e-9)


def test_the_mean_of_an_ancestral_run_does_not_depend_on_the_number_of_steps():
    """Without noise, and with a denoiser that is right, each move keeps the mean of the marginal."""
    x_0 = torch.full((1, 1), 0.3, dtype=torch.float64)
    schedule = LinearSchedule()
    x_T = schedule(1000).alpha * x_0
    for num_steps in (1, 10, 1000):
        x = AncestralSampler(num_steps)(Known(schedule, x_0), x_T, randn_like=torch.zeros_like)
        torch.testing.assert_close(x, x_0)


def exact_flow(x_T, schedule, time):
    """The probability flow of TwoPoints carries quantiles: F_T(x_T) = F_t(x_t), solved by bisection."""

    def cdf(x, t):
        alpha, sigma = schedule(t)
        normal = torch.distributions.Normal(0, 1)
        return (normal.cdf((x - alpha * TwoPoints.a) / sigma) + normal.cdf((x + alpha * TwoPoints.a) / sigma)) / 2

    wanted = cdf(x_T, schedule.num_steps)
    low, high = torch.full_like(x_T, -10), torch.full_like(x_T, 10)
    for _ in range(100):
        middle = (low + high) / 2
        below = cdf(middle, time) < wanted
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2


@pytest.mark.parametrize(
    ("make", "order"), [(DDIMSampler, 1), (DPMSolverSampler, 2), (HeunSampler, 2), (UniPCSampler, 3)]
)
def test_solvers_converge_at_their_order(make, order):
    """Error at the last noisy time against the exact flow, when steps of log-SNR are halved twice."""
    schedule = UniformLogSNR(641, low=-6.0, high=1.0)
    denoiser = TwoPoints(schedule)
    x_T = torch.linspace(-2.5, 2.5, 41, dtype=torch.float64)[:, None]
    errors = []
    for num_moves in (40, 80, 160):
        stages = list(make(num_moves + 1, spacing="time", clip_x0=False).trajectory(denoiser, x_T))
        assert [stage.s for stage in stages[-2:]] == [1, 0]
        errors.append((stages[-2].x_s - exact_flow(x_T, schedule, 1)).abs().mean().item())
    measured = math.log2(errors[1] / errors[2])
    assert measured == pytest.approx(order, abs=0.25), errors
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.4), errors


class WarpedLogSNR(NoiseSchedule):
    """log-SNR in steps that grow, so that a solver must take account of their ratio."""

    def __init__(self, num_steps, low=-6.0, high=1.0):
        u = torch.linspace(0, 1, num_steps, dtype=torch.float64)
        log_snr = high + (low - high) * (0.3 * u + 0.7 * u**3)
        super().__init__(torch.cat([torch.ones(1, dtype=torch.float64), torch.sigmoid(log_snr)]))


@pytest.mark.parametrize(("make", "order"), [(DPMSolverSampler, 2), (UniPCSampler, 3)])
def test_multistep_solvers_keep_their_order_when_steps_differ_in_length(make, order):
    schedule = WarpedLogSNR(1281)
    x_T = torch.linspace(-2.5, 2.5, 41, dtype=torch.float64)[:, None]
    errors = []
    for num_moves in (80, 160):
        stages = list(make(num_moves + 1, spacing="time", clip_x0=False).trajectory(TwoPoints(schedule), x_T))
        errors.append((stages[-2].x_s - exact_flow(x_T, schedule, 1)).abs().mean().item())
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.3), errors


def test_unipc_agrees_with_the_matrix_form_of_its_paper():
    """Second implementation: Zhao et al. (2023), algorithm 5-6, coefficients from the linear system R a = b."""
    schedule, num_steps = LinearSchedule(), 12
    denoiser = TwoPoints(schedule)
    x_T = torch.randn(4, 1, dtype=torch.float64)
    times = visited_times(schedule, num_steps, "log_snr")

    def lam(t):
        return math.log(schedule(t).alpha / schedule(t).sigma)

    def update(x, t, s, r_and_d, x_0):
        """x at s from x at t: differences D / r at relative positions r, as coefficients of the solution of R a = b."""
        h = lam(s) - lam(t)
        level_t, level_s = schedule(t), schedule(s)
        base = level_s.sigma / level_t.sigma * x - level_s.alpha * math.expm1(-h) * x_0
        if not r_and_d:
            return base
        phi, factorial, b = math.expm1(-h) / -h - 1, 1.0, []
        for k in range(1, len(r_and_d) + 1):
            b.append(phi * factorial / math.expm1(-h))
            factorial *= k + 1
            phi = phi / -h - 1 / factorial
        R = torch.tensor([[r**k for r, _ in r_and_d] for k in range(len(r_and_d))], dtype=torch.float64)
        a = torch.linalg.solve(R, torch.tensor(b, dtype=torch.float64))
        total = sum(coefficient * d / r for coefficient, (r, d) in zip(a, r_and_d, strict=True))
        return base - level_s.alpha * math.expm1(-h) * total

    x, past = x_T, []  # past: (time, x_0) of visited nodes
    for t, s in zip(times[:-1], times[1:], strict=True):
        x_0, predicted = denoiser(x, t), x
        if past:  # correct x, from the node before, now that x_0 here is known
            last, last_x, last_x0 = past[-1]
            h = lam(t) - lam(last)
            r_and_d = [((lam(q) - lam(last)) / h, d - last_x0) for q, _, d in past[-2:-1]] + [(1.0, x_0 - last_x0)]
            x = update(last_x, last, t, r_and_d, last_x0)
        past.append((t, x, x_0))
        if s == 0:
            x = x_0  # sigma_0 = 0, alpha_0 = 1
        elif len(past) == 1:
            x = update(x, t, s, [], x_0)
        else:  # UniP-2, with the coefficient 1/2 of the paper's B_2
            h, (q, _, d) = lam(s) - lam(t), past[-2]
            r = (lam(q) - lam(t)) / h
            level_s = schedule(s)
            x = update(x, t, s, [], x_0) - level_s.alpha * math.expm1(-h) * 0.5 * (d - x_0) / r
    last = list(UniPCSampler(num_steps, clip_x0=False).trajectory(denoiser, x_T))[-2]
    assert last.s == 1  # at 0 the estimate is one of the two points, whatever led there
    torch.testing.assert_close(last.x_s, predicted, rtol=1e-9, atol=1e-9)


def test_dpm_solver_agrees_with_the_formulas_of_its_paper():
    """Second implementation: Lu et al. (2022b), algorithm 2, on the uneven steps that rounded times make."""
    schedule, denoiser = LinearSchedule(), TwoPoints(LinearSchedule())
    x = x_T = torch.randn(4, 1, dtype=torch.float64)
    times = visited_times(schedule, 12, "karras")
    lam = {t: math.log(schedule(t).alpha / schedule(t).sigma) for t in times[:-1]}
    before = None
    for i, (t, s) in enumerate(zip(times[:-2], times[1:-1], strict=True)):
        x_0, h = denoiser(x, t), lam[s] - lam[t]
        D = x_0
        if before is not None:
            r = (lam[t] - lam[times[i - 1]]) / h
            D = (1 + 1 / (2 * r)) * x_0 - 1 / (2 * r) * before
        x = schedule(s).sigma / schedule(t).sigma * x - schedule(s).alpha * math.expm1(-h) * D
        before = x_0
    last = list(DPMSolverSampler(12, spacing="karras", clip_x0=False).trajectory(denoiser, x_T))[-2]
    assert last.s == times[-2]
    torch.testing.assert_close(last.x_s, x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_clipping_bounds_the_estimate_and_recomputes_the_noise(name):
    schedule = LinearSchedule()
    x_t = torch.randn(2, 1, 3, 3)
    far = Known(schedule, torch.full_like(x_t, 3.0))
    prediction = load(name).predict(far, x_t, 500, None)
    assert (prediction.x_0 == 1).all()
    alpha, sigma = schedule(500)
    torch.testing.assert_close(alpha * prediction.x_0 + sigma * prediction.noise, x_t)
    assert (load(name, clip_x0=False).predict(far, x_t, 500, None).x_0 == 3).all()


def test_samples_stay_in_range_when_clipped():
    """A denoiser that overshoots at high noise shows a missing clip on the cosine schedule."""
    schedule = CosineSchedule()

    class Overshoot(TwoPoints):
        def __call__(self, x_t, t, label=None):
            alpha, sigma = self.schedule(t)
            return super().__call__(x_t, t) + 1e-2 * sigma * x_t / alpha

    for name in NAMES:
        x = load(name, num_steps=50)(Overshoot(schedule), torch.randn(50, 1, 1, 1))
        assert x.abs().max() <= 1.001, name


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("schedule", [LinearSchedule(), CosineSchedule(), LinearSchedule(30), CosineSchedule(1)])
def test_visited_times_fall_strictly_to_zero(spacing, schedule):
    for num_steps in {1, 2, 7, schedule.num_steps // 2 or 1, schedule.num_steps} - {0}:
        if num_steps > schedule.num_steps:
            continue
        times = visited_times(schedule, num_steps, spacing)
        assert len(times) == num_steps + 1
        assert times[-1] == 0
        assert times[0] <= schedule.num_steps
        assert all(t > s for t, s in zip(times[:-1], times[1:], strict=True))


def test_spacings_are_even_in_what_they_name():
    schedule = LinearSchedule(100_000)
    for spacing, measure in (
        ("time", lambda t: float(t)),
        ("log_snr", lambda t: schedule(t).log_snr.item()),
        ("karras", lambda t: (schedule(t).sigma / schedule(t).alpha).item() ** (1 / 7)),
    ):
        marks = torch.tensor([measure(t) for t in visited_times(schedule, 12, spacing)[:-1]])
        steps = marks.diff()
        assert (steps / steps.mean() - 1).abs().max() < 0.02, spacing


def test_grids_in_noise_level_start_below_the_singular_end_of_the_cosine_schedule():
    schedule = CosineSchedule()
    for spacing in ("log_snr", "karras"):
        level = schedule(visited_times(schedule, 10, spacing)[0])
        assert 100 < (level.sigma / level.alpha).item() <= 160
    assert visited_times(LinearSchedule(), 10, "karras")[0] == 1000


def test_a_trajectory_ends_with_the_sample_and_tells_how_far_it_is():
    denoiser, x_T = TwoPoints(LinearSchedule(50)), torch.randn(2, 1, 2, 2)
    sampler = DDIMSampler(7)
    stages = list(sampler.trajectory(denoiser, x_T))
    assert [stage.moves_done for stage in stages] == list(range(1, 8))
    assert torch.equal(stages[-1].x_s, sampler(denoiser, x_T))


@pytest.mark.parametrize("name", NAMES)
def test_calls_of_the_network_are_as_many_as_stated(name):
    calls = []

    class Counting(TwoPoints):
        def __call__(self, x_t, t, label=None):
            calls.append(label)
            return super().__call__(x_t, t)

    sampler = load(name, num_steps=9)
    label = torch.tensor([3])
    sampler(Counting(LinearSchedule(50)), torch.randn(1, 1, 1, 1), label)
    assert len(calls) == sampler.num_calls
    assert all(seen is label for seen in calls)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DDIMSampler(0), "num_steps must be an integer of at least 1, got 0"),
        (lambda: DDIMSampler(10, spacing="cubic"), "spacing must be one of time, log_snr, karras, got cubic"),
        (lambda: DDIMSampler(10, eta=2.0), r"eta must lie in \[0, 1\], got 2.0"),
        (lambda: AncestralSampler(10, variance="medium"), "variance must be one of small, large, learned, got medium"),
        (lambda: visited_times(LinearSchedule(10), 11, "time"), r"num_steps must lie in \[1, 10\].*got 11"),
    ],
)
def test_impossible_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", NAMES)
def test_samplers_visit_the_times_of_their_spacing(name, spacing):
    schedule = LinearSchedule(100)
    sampler = instantiate(OmegaConf.load(CONF / "sampler" / f"{name}.yaml"), num_steps=7, spacing=spacing)
    stages = sampler.trajectory(GaussianDenoiser(schedule, 0.2), torch.randn(1, 1, 2, 2))
    assert [stage.s for stage in stages] == visited_times(schedule, 7, spacing)[1:]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("num_steps", [1, 2, 7, 50])
def test_every_sampler_starts_from_pure_noise_where_the_schedule_ends_in_it(name, spacing, num_steps):
    schedule = LinearSchedule(50, zero_terminal_snr=True)
    x_0 = torch.rand(3, 1, 4, 4) * 2 - 1
    sampler = load(name, num_steps=num_steps, spacing=spacing)
    torch.testing.assert_close(sampler(Known(schedule, x_0), torch.randn_like(x_0)), x_0)
    assert visited_times(schedule, num_steps, spacing)[0] == 50


@pytest.mark.parametrize("name", ["ddim", "heun", "dpm_solver", "unipc"])
def test_from_pure_noise_gaussian_data_keep_their_variance(name):
    schedule = LinearSchedule(1000, zero_terminal_snr=True)
    sampler = load(name, num_steps=200, clip_x0=False)
    x = sampler(GaussianDenoiser(schedule, 0.25), torch.randn(400, 1, 8, 8))
    assert x.var().item() == pytest.approx(0.25, rel=0.05)


class Spread(GaussianDenoiser):
    """The oracle with a learned variance at a given fraction."""

    def __init__(self, schedule, variance, fraction):
        super().__init__(schedule, variance)
        self.fraction = fraction

    def estimate(self, x_t, t, label=None):
        return Estimate(self(x_t, t, label), torch.full_like(x_t, self.fraction))


@pytest.mark.parametrize(("fraction", "variance"), [(0.0, "small"), (1.0, "large")])
def test_a_learned_variance_at_its_ends_is_the_fixed_one(fraction, variance):
    schedule, x_T = LinearSchedule(), torch.randn(2, 1, 4, 4)
    found = []
    for kind in ("learned", variance):
        torch.manual_seed(3)
        found.append(AncestralSampler(40, variance=kind)(Spread(schedule, 0.25, fraction), x_T))
    torch.testing.assert_close(*found)


def test_a_learned_variance_in_the_middle_is_the_geometric_mean():
    schedule = LinearSchedule()
    t, s, x_t = 500, 400, torch.zeros(20_000, 1, 2, 2)
    sampler = AncestralSampler(10, variance="learned", clip_x0=False)
    x_s, _ = sampler.step(Spread(schedule, 0.25, 0.5), x_t, t, s, None, None, torch.randn_like)
    small = posterior(x_t, x_t, schedule(t), schedule(s)).variance
    large = 1 - (schedule(t).alpha / schedule(s).alpha) ** 2
    assert x_s.var().item() == pytest.approx((small * large).sqrt().item(), rel=0.02)


def test_a_variance_that_was_not_learned_is_refused():
    class Plain(GaussianDenoiser):
        def estimate(self, x_t, t, label=None):
            return Estimate(self(x_t, t, label), None)

    with pytest.raises(ValueError, match="variance must be small or large for a network that learns none"):
        AncestralSampler(3, variance="learned")(Plain(LinearSchedule(), 1.0), torch.randn(1, 1, 2, 2))


@pytest.mark.parametrize("name", NAMES)
def test_no_sampler_reads_an_image_back(name):
    """On the meta device there is nothing to read: whatever waits for a GPU would raise."""
    schedule = LinearSchedule(50)

    class Empty:
        def __init__(self):
            self.schedule = schedule

        def __call__(self, x_t, t, label=None):
            return torch.zeros_like(x_t)

    x = load(name, num_steps=20)(Empty(), torch.empty(2, 1, 4, 4, device="meta"))
    assert x.device.type == "meta"
    assert x.shape == (2, 1, 4, 4)


def test_from_a_time_of_its_own_grid_a_sampler_goes_on_as_from_the_start():
    schedule, x_T = LinearSchedule(100), torch.randn(2, 1, 4, 4)
    denoiser, sampler = GaussianDenoiser(schedule, 0.25), DDIMSampler(10)
    stages = list(sampler.trajectory(denoiser, x_T))
    later = list(sampler.trajectory(denoiser, stages[3].x_s, start=stages[3].s))
    assert [stage.s for stage in later] == [stage.s for stage in stages[4:]]
    torch.testing.assert_close(later[-1].x_s, stages[-1].x_s)


def test_a_first_move_is_never_much_shorter_than_those_that_follow():
    schedule, x = LinearSchedule(100), torch.randn(2, 1, 4, 4)
    denoiser, sampler = GaussianDenoiser(schedule, 0.25), DDIMSampler(10)
    grid = [stage.s for stage in sampler.trajectory(denoiser, x)]
    for start in (grid[3] + 1, grid[3] + 8):
        moves = [stage.s for stage in sampler.trajectory(denoiser, x, start=start)]
        assert moves == (grid[4:] if start == grid[3] + 1 else grid[3:])
