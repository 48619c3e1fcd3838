"""Peak memory of a training step over what stays: plain and with recomputed activations, this project and its peers."""

import gc
from collections.abc import Callable

import torch

from benchmarks.ours import bare
from benchmarks.peers import INSTALL, PEERS
from benchmarks.setting import PRECISIONS, Contender, Setting
from benchmarks.show import leave


def memory(setting: Setting) -> None:
    made: dict[str, Callable[..., Contender]] = {"this project, bare step": bare, **PEERS}
    rows: list[dict[str, object]] = []
    for name, make in made.items():
        for precision in PRECISIONS:
            for checkpointing in (False, True):
                row: dict[str, object] = {"who": f"{name}{', recomputing' if checkpointing else ''}"}
                row["precision"] = precision
                try:
                    step = make(setting, precision, checkpointing).step
                    step()  # makes the optimizer's state
                    row["peak MB"] = peak(step, setting) / 1e6
                except ImportError:
                    row["failed"] = f"not installed: {INSTALL}"
                except Exception as error:
                    row["failed"] = f"{type(error).__name__}: {error}".splitlines()[0]
                rows.append(row)
                gc.collect()
    reference = next((row["peak MB"] for row in rows if row["who"] == "diffusers" and "peak MB" in row), None)
    for row in rows:
        if isinstance(reference, float) and isinstance(row.get("peak MB"), float):
            row["x diffusers fp32"] = float(str(row["peak MB"])) / reference
    title = (
        f"Peak memory of a training step over weights, averages and optimizer: batch {setting.batch} of"
        f" 3x{setting.size}x{setting.size}, {setting.channels} channels, {setting.device}; as torch's allocator counts"
    )
    leave(setting.output, "memory", title, rows, "peak MB")


def peak(step: Callable[[], object], setting: Setting) -> float:
    """Bytes that torch's allocator gave out at the most during a step, over those given out when it began."""
    if setting.device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return float(torch.cuda.max_memory_allocated() - before)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    results = profiler.profiler.kineto_results
    moves = sorted((e.start_ns(), e.nbytes()) for e in results.events() if e.name() == "[memory]")
    now = most = 0
    for _, moved in moves:
        now += moved
        most = max(most, now)
    return float(most)
