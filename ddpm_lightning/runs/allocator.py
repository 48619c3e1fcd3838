"""What the C library does with memory that torch gives back to it on a CPU."""

import ctypes
from contextlib import suppress

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
MOST = 2**31 - 1  # bytes, of what is kept
LARGE = 2**25  # bytes, the most that it takes for granted to be on the heap


def keep_freed_memory() -> None:
    """Let glibc keep what a training step frees, up to 2 GB, for the next one.

    Otherwise it hands the activations back to the system after each step, which clears every page that is asked for
    anew: some 5 % of a step in fp32. Other C libraries are left as they are.
    """
    with suppress(OSError, AttributeError, TypeError):  # no glibc
        mallopt = ctypes.CDLL(None).mallopt
        # both, as each of them ends glibc's own adapting of the other
        mallopt(M_MMAP_THRESHOLD, LARGE)
        mallopt(M_TRIM_THRESHOLD, MOST)
