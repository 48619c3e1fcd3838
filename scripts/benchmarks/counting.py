"""What a step costs, counted rather than timed."""

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

READS = ("_local_scalar_dense", "item", "is_nonzero", "equal")


class Operations(TorchDispatchMode):
    """Counts what is dispatched within: all operations, and those by which the host waits for a value."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.reads = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        self.reads += func.overloadpacket.__name__ in READS
        return func(*args, **(kwargs or {}))


def operations(step: Callable[[], object]) -> Operations:
    """Of a step, but for the optimizer's own, which keeps a counter for each parameter or fuses them all."""
    with patch.object(torch.optim.Adam, "step", lambda *_: None), Operations() as counted:
        step()
    return counted


def forward_flops(net: Callable[..., object], images: torch.Tensor) -> int:
    """Of the network's forward pass, for one image."""
    # of torch's ways to compute attention this is one whose products are counted on any device
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        net(images[:1], torch.zeros(1, dtype=torch.int64, device=images.device))
    return counter.get_total_flops()


def convolution_limit(size: int, channels: int, batch: int, clock: Callable[[], float], device: str) -> float:
    """FLOP/s in fp32 of the fastest of the 3x3 convolutions of which such a network consists, forward, in either order
    of memory.
    """
    best = 0.0
    for side, wide in ((size, channels), (size // 2, 2 * channels), (size // 4, 2 * channels)):
        for order in (torch.contiguous_format, torch.channels_last):
            convolution = torch.nn.Conv2d(wide, wide, 3, padding=1).to(device)
            x = torch.randn(batch, wide, side, side, device=device).contiguous(memory_format=order)
            flops = 2 * 9 * wide * wide * side * side * batch
            with torch.no_grad():
                convolution(x)
                start = clock()
                for _ in range(10):
                    convolution(x)
                best = max(best, 10 * flops / (clock() - start))
    return best
