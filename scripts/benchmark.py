"""Measure this project's speed on this machine, beside its peers: ``python scripts/benchmark.py train``.

Alternatives are timed in turn, in one process; the figures to trust are the ratios. With one thread on a CPU seconds
are CPU seconds, which a neighbour spoils less. A table goes to the screen, a JSON file and a plot to --output.

train     images per second: this project's Trainer and its bare step, diffusers, denoising-diffusion-pytorch
memory    peak of a training step, plain and with recomputed activations
sampling  what a sampler costs beside the network; with --ckpt runs/digits seconds and Frechet distance, too
data      batches from memory against decoding each sample
startup   seconds until help, a refusal, the first training step
ddp       two processes that exchange gradients, and two that don't
profile   what the time of a step goes to, by operation

The peers come with pip install -e '.[bench]'.
"""

import argparse
from pathlib import Path

WHAT = ("train", "memory", "sampling", "data", "startup", "ddp", "profile")


def main(arguments: argparse.Namespace) -> None:
    import torch

    from benchmarks.setting import Setting
    from ddpm_lightning.runs.allocator import spare_memory

    torch.set_num_threads(arguments.threads)
    spare_memory()  # as a training run does; here it helps the peers as much
    names = (
        "output",
        "channels",
        "size",
        "batch",
        "threads",
        "device",
        "compile",
        "layout",
        "dropout",
        "repeats",
        "steps",
    )
    setting = Setting(**{name: getattr(arguments, name) for name in names})
    match arguments.what:
        case "train":
            from benchmarks.train import train

            train(setting)
        case "memory":
            from benchmarks.memory import memory

            memory(setting)
        case "sampling":
            from benchmarks.sampling import sampling

            sampling(setting, arguments.ckpt, arguments.images)
        case "data":
            from benchmarks.data import data

            data(setting)
        case "startup":
            from benchmarks.startup import startup

            startup(setting)
        case "ddp":
            from benchmarks.ddp import ddp

            ddp(setting)
        case "profile":
            from benchmarks.profile import profile

            profile(setting)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=WHAT)
    parser.add_argument("--output", type=Path, default=Path("runs/benchmark"), help="folder")
    parser.add_argument("--channels", type=int, default=64, help="base channels of the network, a multiple of 32")
    parser.add_argument("--size", type=int, default=32, help="pixels of a side, a multiple of 8")
    parser.add_argument("--batch", type=int, help="images; by default 8, for memory 16")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1")
    parser.add_argument("--compile", action="store_true", help="torch.compile, of all networks")
    parser.add_argument("--layout", choices=["auto", "channels_last", "contiguous"], default="auto")
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--repeats", type=int, default=7, help="rounds, of which the medians are taken")
    parser.add_argument("--steps", type=int, default=4, help="training steps timed at once")
    parser.add_argument("--ckpt", help="for sampling: a run of the digits")
    parser.add_argument("--images", type=int, default=1000, help="for sampling with --ckpt")
    arguments = parser.parse_args()
    if arguments.batch is None:
        arguments.batch = 16 if arguments.what == "memory" else 8
    for name in ("channels", "size", "batch", "threads", "repeats", "steps"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(arguments, name)}")
    for name, unit in (("size", 8), ("channels", 32)):
        if getattr(arguments, name) % unit:
            parser.error(f"--{name} must be a multiple of {unit}, got {getattr(arguments, name)}")
    if not 0 <= arguments.dropout < 1:
        parser.error(f"--dropout must lie in [0, 1), got {arguments.dropout}")
    if arguments.ckpt and not Path(arguments.ckpt).exists():
        parser.error(f"--ckpt must be a run folder or a checkpoint, got {arguments.ckpt}")
    try:
        arguments.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--output must be a folder that can be written, got {arguments.output} ({error})")
    _check_device(parser, arguments.device)
    return arguments


def _check_device(parser: argparse.ArgumentParser, device: str) -> None:
    import torch

    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch's word for a build without CUDA is an assertion
        parser.error(f"--device must be cpu, or one that is here, got {device} ({str(error).splitlines()[0]})")


if __name__ == "__main__":
    main(parse())
