"""What is measured: the network, the batch and the machine, the same for all."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch

PRECISIONS = ("32-true", "bf16-mixed")
LAYOUTS = {"auto": None, "channels_last": True, "contiguous": False}


@dataclass(frozen=True)
class Setting:
    """The U-Net of Ho et al. (2020) with ``channels``: levels 1, 2, 2, 2, two blocks, attention at half the size.

    ``steps`` are those timed at once, ``layout`` is this project's alone, as no peer has such a switch.
    """

    output: Path
    channels: int = 64
    size: int = 32
    batch: int = 8
    threads: int = 1
    device: str = "cpu"
    compile: bool = False
    layout: str = "auto"
    dropout: float = 0.0
    repeats: int = 7
    steps: int = 4

    @property
    def counts_cpu_time(self) -> bool:
        """With one thread on a CPU the clock stops while neighbours have the core."""
        return self.device == "cpu" and self.threads == 1

    def clock(self) -> float:
        """Seconds, all work that was asked for being done."""
        if self.counts_cpu_time:
            return time.process_time()
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()
        return time.perf_counter()

    def autocast(self, precision: str) -> AbstractContextManager[object]:
        kind = self.device.partition(":")[0]
        return torch.autocast(kind, torch.bfloat16, enabled=precision == "bf16-mixed")

    def images(self) -> torch.Tensor:
        """A batch (B, 3, size, size) in [-1, 1], on the device."""
        return torch.rand(self.batch, 3, self.size, self.size, device=self.device) * 2 - 1


@dataclass
class Contender:
    """One who takes part: ``step`` is a whole training step. ``net`` maps images and times to images."""

    name: str
    precision: str
    net: torch.nn.Module
    step: Callable[[], object]
