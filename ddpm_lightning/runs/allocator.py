"""What is done to memory between the steps of a training, and need not be."""

import ctypes
from contextlib import suppress

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
MOST = 2**31 - 1  # bytes, the largest number that it takes
LARGE = 2**25  # bytes, the most that it takes


def spare_memory() -> None:
    """Let glibc keep what a training step frees for the next one; and don't fill what is new.

    Otherwise it hands the activations back to the system after each step, which clears every page that is asked for
    anew: 6 % of a step in fp32 where tensors are of at most 32 MB; larger ones glibc always hands back. What is kept
    has no bound but the most that the process ever held. Other C libraries are left as they are. And torch, asked to be
    deterministic, fills new tensors before anything is written to them, lest someone read them: 3 % more. Both last as
    long as the process.
    """
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    with suppress(OSError, AttributeError, TypeError):  # no glibc
        mallopt = ctypes.CDLL(None).mallopt
        # both, as each of them ends glibc's own adapting of the other
        mallopt(M_MMAP_THRESHOLD, LARGE)
        mallopt(M_TRIM_THRESHOLD, MOST)
