import os
import subprocess
import sys

import pytest
import torch
from conftest import group_options
from hydra.utils import instantiate
from omegaconf import OmegaConf

from ddpm_lightning.diffusion.timesteps import ImportanceTimesteps, StratifiedTimesteps, UniformTimesteps
from ddpm_lightning.runs.refusal import CONF

CPU = torch.device("cpu")


def made(name, T):
    cfg = OmegaConf.create({"schedule": {"num_steps": T}, "it": OmegaConf.load(CONF / "timesteps" / f"{name}.yaml")})
    return instantiate(cfg.it)


def learned(loss, T=50, decay=0.9):
    """Importance sampling that has heard a known loss for each time often."""
    timesteps = ImportanceTimesteps(T, decay=decay)
    t = torch.arange(1, T + 1)
    for _ in range(10):
        timesteps.update(t, loss)
    return timesteps


@pytest.mark.parametrize("name", group_options("timesteps"))
@pytest.mark.parametrize("T", [1, 7, 1000])
def test_every_time_of_the_schedule_is_drawn_and_no_other(name, T):
    t, weight = made(name, T)(20 * T, T, CPU)
    assert t.dtype == torch.int64
    assert t.unique().tolist() == list(range(1, T + 1)) or T == 1000
    assert t.min() >= 1
    assert t.max() <= T
    assert weight.shape == t.shape
    torch.testing.assert_close(weight, torch.ones_like(weight))  # as long as nothing is learned


@pytest.mark.parametrize("name", group_options("timesteps"))
def test_the_mean_weighted_loss_is_that_of_uniform_times(name):
    """Unbiased: for a loss that depends on time strongly, and differs from what was learned."""
    T = 20
    truth = torch.linspace(3, 0.1, T) ** 2
    timesteps = made(name, T)
    for _ in range(10):
        timesteps.update(torch.arange(1, T + 1), truth.flip(0) + 0.5)
    t, weight = timesteps(200_000, T, CPU)
    weighted = weight * truth[t - 1]
    error = weighted.std() / len(t) ** 0.5
    assert abs(weighted.mean() - truth.mean()) < 4 * error


def test_stratified_times_are_spread_evenly_over_each_batch():
    for B, T in ((64, 1000), (7, 50), (100, 10)):
        t = StratifiedTimesteps()(B, T, CPU).t.sort().values
        counts = torch.bincount((t - 1) * min(B, T) // T, minlength=min(B, T))
        assert counts.max() - counts.min() <= 2
    # so that the mean over a batch of a loss that depends on time varies much less
    loss = torch.linspace(1, 0, 1000) ** 2
    spread = [
        torch.stack([loss[timesteps(64, 1000, CPU).t - 1].mean() for _ in range(200)]).std()
        for timesteps in (StratifiedTimesteps(), UniformTimesteps())
    ]
    assert spread[0] < 0.25 * spread[1]


def test_stratified_times_are_each_equally_likely():
    t = torch.cat([StratifiedTimesteps()(16, 10, CPU).t for _ in range(5000)])
    shares = torch.bincount(t, minlength=11)[1:] / len(t)
    assert (shares - 0.1).abs().max() < 0.004


def test_importance_is_the_root_mean_square_of_the_loss():
    """p_t in proportion to sqrt(E[L_t^2]), Nichol & Dhariwal (2021), eq. 18; the smallest variance there is."""
    loss = torch.arange(1.0, 51)
    timesteps = learned(loss)
    torch.testing.assert_close(timesteps.probabilities(), 0.999 * loss / loss.sum() + 0.001 / 50)
    assert timesteps.probabilities().sum().item() == pytest.approx(1)
    t, weight = timesteps(100_000, 50, CPU)
    shares = torch.bincount(t, minlength=51)[1:] / len(t)
    assert (shares - timesteps.probabilities()).abs().max() < 0.002
    weighted = weight * loss[t - 1]
    assert weighted.std() < 0.02 * weighted.mean()  # at the optimum every term is the same


def test_importance_waits_until_it_has_seen_every_time_often_enough():
    timesteps, t = ImportanceTimesteps(4, min_count=3), torch.tensor([1, 2, 3, 4])
    for i in range(3):
        assert (timesteps.probabilities() == 0.25).all(), i
        timesteps.update(t, torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert timesteps.probabilities()[3] > 0.3
    late = ImportanceTimesteps(4, min_count=3)
    for _ in range(5):
        late.update(t[:3], torch.ones(3))
    assert (late.probabilities() == 0.25).all()


def test_the_running_mean_square_forgets_at_the_given_rate():
    timesteps, t = learned(torch.full((3,), 2.0), T=3, decay=0.5), torch.tensor([2])
    assert timesteps.mean_square.tolist() == pytest.approx([4, 4, 4])
    timesteps.update(t, torch.tensor([4.0]))
    assert timesteps.mean_square.tolist() == pytest.approx([4, 10, 4])
    timesteps.update(torch.tensor([2, 2]), torch.tensor([0.0, 0.0]))  # twice in one batch
    assert timesteps.mean_square.tolist() == pytest.approx([4, 2.5, 4])
    before = timesteps.mean_square.clone(), timesteps.counts.clone()
    timesteps.update(t.repeat(2), torch.tensor([float("nan"), float("inf")]))  # as if it had not been
    assert torch.equal(timesteps.mean_square, before[0])
    assert torch.equal(timesteps.counts, before[1])


def test_times_of_another_schedule_are_refused():
    with pytest.raises(ValueError, match="num_steps must be 100, as of the schedule, got 50"):
        ImportanceTimesteps(50)(4, 100, CPU)


def test_what_importance_has_learned_travels_in_the_state():
    timesteps = learned(torch.arange(1.0, 51))
    again = ImportanceTimesteps(50)
    again.load_state_dict(timesteps.state_dict())
    assert torch.equal(again.probabilities(), timesteps.probabilities())


RANK = """
import sys, torch
from ddpm_lightning.diffusion.timesteps import ImportanceTimesteps
rank, folder = int(sys.argv[1]), sys.argv[2]
torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
timesteps = ImportanceTimesteps(6)
for _ in range(10):
    timesteps.update(torch.arange(1, 4) + 3 * rank, torch.arange(1.0, 4) + 3 * rank)
torch.save(timesteps.probabilities(), f"{folder}/{rank}")
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_ranks_share_what_they_learn(tmp_path):
    """Each hears of half of the times; both know as much as one that hears of all."""
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(r), str(tmp_path)], env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        for r in (0, 1)
    ]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    first, second = (torch.load(tmp_path / str(r)) for r in (0, 1))
    assert torch.equal(first, second)
    torch.testing.assert_close(first, learned(torch.arange(1.0, 7), T=6).probabilities())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"decay": 1.0}, r"decay must lie in \[0, 1\), got 1.0"),
        ({"min_count": 0}, "min_count must be at least 1, got 0"),
        ({"uniform_share": 0.0}, r"uniform_share must lie in \(0, 1\], got 0.0"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ImportanceTimesteps(10, **settings)
