import time
from contextlib import nullcontext
from types import SimpleNamespace

import psutil
import pytest
import torch

from ddpm_lightning.callbacks import throughput
from ddpm_lightning.callbacks.throughput import Throughput, peak_flops


class Clock:
    """Time that only moves when told to."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(throughput.time, "perf_counter", lambda: self.now)


def run(callback, clock, seconds, every=4, world_size=1, accumulate=1):
    """Batches of 8 that take as many seconds each; returns what was logged, by step."""
    logged = {}
    trainer = SimpleNamespace(
        global_step=0, log_every_n_steps=every, world_size=world_size, accumulate_grad_batches=accumulate
    )
    trainer.precision_plugin = SimpleNamespace(forward_context=nullcontext)
    module = SimpleNamespace(device=torch.device("cpu"))
    module.log_dict = lambda figures: logged.__setitem__(trainer.global_step, figures)
    callback.on_train_start(trainer, module)
    for i, taken in enumerate(seconds):
        callback.on_train_batch_start(trainer, module, None, i)
        clock.now += taken
        trainer.global_step += (i + 1) % accumulate == 0
        callback.on_train_batch_end(trainer, module, None, (torch.zeros(8), None), i)
    return logged


def test_images_per_second_are_those_of_the_median_batch_so_that_validation_does_not_count(monkeypatch):
    clock = Clock(monkeypatch)
    logged = run(Throughput(), clock, [0.5, 0.5, 60.0, 0.5, 0.25, 0.25, 0.25, 0.25])
    assert [figures["train/images_per_s"] for figures in logged.values()] == [16, 32]
    assert list(logged) == [4, 8]


def test_devices_add_up_and_accumulated_batches_count_each(monkeypatch):
    clock = Clock(monkeypatch)
    logged = run(Throughput(), clock, [0.5] * 8, every=2, world_size=3, accumulate=2)
    assert {step: figures["train/images_per_s"] for step, figures in logged.items()} == {2: 48, 4: 48}


def test_the_share_of_the_peak_counts_three_forward_passes_an_image(monkeypatch):
    clock = Clock(monkeypatch)
    monkeypatch.setattr(throughput, "peak_flops", lambda device: 1e9)
    logged = run(Throughput(flops=10_000_000), clock, [0.5] * 4)
    assert logged[4]["train/share_of_peak"] == pytest.approx(3 * 1e7 * 16 / 1e9)
    assert "train/share_of_peak" not in run(Throughput(), clock, [0.5] * 4)[4]


def test_memory_and_load_are_those_of_psutil(monkeypatch):
    logged = run(Throughput(), Clock(monkeypatch), [0.5] * 4)[4]
    assert logged["system/memory_gb"] == pytest.approx(psutil.Process().memory_info().rss / 1e9, rel=0.1)
    assert 0 <= logged["system/cpu_percent"] <= 100


def test_the_measured_peak_is_that_of_a_product_of_matrices():
    a = torch.randn(2048, 2048)
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - start)
    assert peak_flops(torch.device("cpu")) == pytest.approx(2 * 2048**3 / best, rel=0.8)
