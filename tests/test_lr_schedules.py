import math

import pytest

from ddpm_lightning.lr_schedules import Constant, Cosine


def test_constant_rises_linearly_then_stays():
    assert [Constant(4)(step) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert Constant()(0) == 1.0


def test_cosine_falls_from_one_to_its_minimum():
    schedule = Cosine(num_steps=110, warmup_steps=10, min_factor=0.1)
    assert schedule(4) == 0.5
    assert schedule(10) == 1.0
    assert schedule(60) == pytest.approx(0.55)
    assert schedule(35) == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2)
    assert schedule(110) == schedule(10_000) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Constant(-1), "warmup_steps must be at least 0, got -1"),
        (lambda: Cosine(-1), "num_steps must be at least 1.*got -1"),
        (lambda: Cosine(10, 10), r"warmup_steps must lie in \[0, num_steps\)"),
        (lambda: Cosine(10, 0, 2.0), r"min_factor must lie in \[0, 1\]"),
    ],
)
def test_impossible_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
