"""How fast training is, and what it takes of the machine."""

import time
from contextlib import suppress
from typing import Any

import lightning as L
import psutil
import torch

TRAINING_FLOPS = 3  # forward passes that a step costs: one forward, and a backward of two products for each of its one
PROBE, GPU_PROBE = 1024, 8192  # side of the matrices that measure the peak


class Throughput(L.Callback):
    """Logs, each time the loggers are due, means since the last time.

    - ``train/images_per_s`` over all devices. From the median time between two batches, so that validation, samples and
      checkpoints don't count.
    - ``train/share_of_peak``: the network's floating-point operations per second, as a share of what products of large
      matrices reach on the same device in the same precision, measured when training starts. Not with ``flops`` None.
    - ``system/memory_gb`` of this process, ``system/cpu_percent`` of the whole machine, and on a GPU
      ``system/gpu_memory_gb`` at its peak, and ``system/gpu_percent`` if pynvml is installed.

    ``flops`` are those of a forward pass for one image; the run sets them if they are not given.
    """

    def __init__(self, flops: int | None = None) -> None:
        self.flops = flops
        self.peak: float | None = None
        self.starts: list[float] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        if self.flops is not None:
            with trainer.precision_plugin.forward_context():
                self.peak = peak_flops(pl_module.device)
        psutil.cpu_percent()  # the first call only starts the measurement

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.starts.append(time.perf_counter())

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        last = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if not last or trainer.global_step % trainer.log_every_n_steps or len(self.starts) < 2:
            return
        between = sorted(b - a for a, b in zip(self.starts, self.starts[1:], strict=False))
        self.starts = []
        images_per_s = len(batch[0]) / between[len(between) // 2]
        figures = {"train/images_per_s": images_per_s * trainer.world_size}
        if self.peak and self.flops:
            figures["train/share_of_peak"] = TRAINING_FLOPS * self.flops * images_per_s / self.peak
        figures["system/memory_gb"] = psutil.Process().memory_info().rss / 1e9
        figures["system/cpu_percent"] = psutil.cpu_percent()
        if pl_module.device.type == "cuda":
            figures["system/gpu_memory_gb"] = torch.cuda.max_memory_allocated(pl_module.device) / 1e9
            with suppress(ModuleNotFoundError):  # pynvml
                figures["system/gpu_percent"] = float(torch.cuda.utilization(pl_module.device))
        pl_module.log_dict(figures)


def peak_flops(device: torch.device) -> float:
    """Floating-point operations per second of products of large matrices, in the autocast precision in force."""
    side = GPU_PROBE if device.type == "cuda" else PROBE
    a = torch.randn(side, side, device=device)
    best = float("inf")
    repeats = 5 if device.type == "cuda" else 1
    for _ in range(4):
        start = time.perf_counter()
        for _ in range(repeats):
            product = a @ a
        product[0, 0].item()  # waits for the device
        best = min(best, (time.perf_counter() - start) / repeats)
    return 2 * side**3 / best
