"""What two processes cost each other on this machine: steps with gradients exchanged by gloo, and without."""

import os
import socket
import statistics
import time
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.queues import SimpleQueue

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.ours import bare
from benchmarks.setting import PRECISIONS, Setting
from benchmarks.show import leave
from ddpm_lightning.runs.allocator import spare_memory


def ddp(setting: Setting) -> None:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    results = get_context("spawn").SimpleQueue()
    spawn(_process, (setting, port, results), nprocs=2)
    seconds: dict[str, list[float]] = results.get()
    rows = [
        {
            "what": what,
            "ms/step": statistics.median(taken) * 1e3,
            "least": min(taken) * 1e3,
            "most": max(taken) * 1e3,
            "images/s": setting.batch * (1 if what == "one process alone" else 2) / statistics.median(taken),
            "overhead": statistics.median(a / b for a, b in zip(taken, seconds[NEIGHBOURS], strict=True)) - 1,
        }
        for what, taken in seconds.items()
    ]
    title = (
        f"Two processes of one thread, batch {setting.batch} of 3x{setting.size}x{setting.size} each,"
        f" {setting.channels} channels, fp32, CPU: wall time, medians of {setting.repeats}; overhead over two that"
        " exchange nothing"
    )
    leave(setting.output, "ddp", title, rows, "ms/step")


NEIGHBOURS = "two processes, nothing exchanged"


def _process(rank: int, setting: Setting, port: int, results: "SimpleQueue[dict[str, list[float]]]") -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    spare_memory()
    dist.init_process_group("gloo", rank=rank, world_size=2)
    setting = replace(setting, device="cpu", threads=1, compile=False)
    alone, exchanging = bare(setting, PRECISIONS[0]), bare(setting, PRECISIONS[0], wrap=DistributedDataParallel)
    seconds: dict[str, list[float]] = {"one process alone": [], NEIGHBOURS: [], "two processes, DDP": []}
    for turn in range(setting.repeats + 1):
        for what, taken in seconds.items():
            dist.barrier()
            if rank == 1 and what == "one process alone":
                continue
            start = time.perf_counter()
            for _ in range(setting.steps):
                (exchanging if "DDP" in what else alone).step()
            if turn:
                taken.append((time.perf_counter() - start) / setting.steps)
    if rank == 0:
        results.put(seconds)
    dist.barrier()
    dist.destroy_process_group()
