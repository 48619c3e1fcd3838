import math

import pytest
import torch
from conftest import group_options
from hydra.utils import instantiate
from omegaconf import OmegaConf

from ddpm_lightning.lr_schedules import Constant, Cosine, Exponential, Linear, Step
from ddpm_lightning.runs.refusal import CONF


def test_constant_rises_linearly_then_stays():
    assert [Constant(4)(step) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert Constant()(0) == 1.0


def test_cosine_falls_from_one_to_its_minimum():
    schedule = Cosine(lr=2.0, warmup_steps=10, min_lr=0.2)
    assert schedule(4, 110) == 0.5
    assert schedule(10, 110) == 1.0
    assert schedule(60, 110) == pytest.approx(0.55)
    assert schedule(35, 110) == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2)
    assert schedule(110, 110) == schedule(10_000, 110) == pytest.approx(0.1)


def test_linear_falls_in_equal_steps():
    schedule = Linear(lr=1.0, warmup_steps=2, min_lr=0.5)
    assert [schedule(step, 7) for step in range(9)] == pytest.approx([0.5, 1, 1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.5])


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (Exponential(0.9, 1), lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.9)),
        (Step(0.3, 7), lambda o: torch.optim.lr_scheduler.StepLR(o, 7, 0.3)),
        (Exponential(0.25, 10), lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.25**0.1)),
        (Cosine(lr=1.0, min_lr=0.1), lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 30, 0.1)),
        (Linear(lr=1.0, min_lr=0.2), lambda o: torch.optim.lr_scheduler.LinearLR(o, 1.0, 0.2, 30)),
    ],
)
def test_schedules_are_those_of_torch(ours, theirs):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = theirs(optimizer)
    for step in range(31):
        assert ours(step, 30) == pytest.approx(schedule.get_last_lr()[0], rel=1e-6), step
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize("name", group_options("lr_schedule"))
def test_every_schedule_rises_from_its_first_step_and_never_above_one(name):
    cfg = OmegaConf.create({"optimizer": {"lr": 2e-4}, "it": OmegaConf.load(CONF / "lr_schedule" / f"{name}.yaml")})
    cfg.it.warmup_steps = 10
    schedule = instantiate(cfg.it)
    assert [schedule(step, 100) for step in range(10)] == pytest.approx([(n + 1) / 10 for n in range(10)])
    after = [schedule(step, 100) for step in range(10, 101)]
    assert after[0] == 1
    assert all(0 <= b <= a for a, b in zip(after, after[1:], strict=False))


def test_the_configured_cosine_ends_at_a_millionth():
    cfg = OmegaConf.create({"optimizer": {"lr": 2e-4}, "it": OmegaConf.load(CONF / "lr_schedule" / "cosine.yaml")})
    assert cfg.it.warmup_steps == 1000
    assert 2e-4 * instantiate(cfg.it)(50_000, 50_000) == pytest.approx(1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Constant(-1), "warmup_steps must be at least 0, got -1"),
        (lambda: Cosine(1.0)(0, None), "a fall needs an end: trainer.max_steps or trainer.max_epochs, got -1 for both"),
        (lambda: Cosine(1.0, 10)(0, 10), r"warmup_steps must lie in \[0, 10\), the steps of the run, got 10"),
        (lambda: Cosine(1.0, 0, 2.0), r"min_lr must lie in \[0, 1.0\], up to optimizer.lr, got 2.0"),
        (lambda: Step(0.0), r"gamma must lie in \(0, 1\], got 0.0"),
        (lambda: Exponential(0.5, 0), "interval must be at least 1, got 0"),
    ],
)
def test_impossible_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
