"""Images per second of training: this project's bare step and whole Trainer, and its peers' steps."""

import logging
import statistics
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.counting import convolution_limit, forward_flops, operations
from benchmarks.ours import TrainerRun, bare
from benchmarks.peers import INSTALL, PEERS
from benchmarks.setting import PRECISIONS, Contender, Setting
from benchmarks.show import leave
from benchmarks.timing import Seconds, in_turn, ratio

TRAINING_FLOPS = 3  # forward passes that a step costs
TRAINER, BARE, DIFFUSERS = "this project, Trainer", "this project, bare step", "diffusers"
FP32, BF16 = PRECISIONS


def train(setting: Setting) -> None:
    quieten()
    with tempfile.TemporaryDirectory() as folder:
        everyone, failed = _gather(setting, Path(folder))
        counts = {key: _counts(made, setting) for key, made in everyone.items() if isinstance(made, Contender)}
        timed = {key: _timed(made, setting) for key, made in everyone.items()}
        timed["again"] = _timed(bare(setting, FP32), setting)
        limits: list[float] = []
        timed["limit"] = lambda: _limit(setting, limits)
        seconds, failures = in_turn(timed, setting.repeats)
    failed |= failures
    limit = statistics.median(limits[1:])
    rows = [_row(key, setting, seconds, counts, failed, limit) for key in [*everyone, *failed.keys() - everyone.keys()]]
    compared = comparisons(seconds, rows)
    clock = "CPU seconds" if setting.counts_cpu_time else "seconds"
    title = (
        f"Training, batch {setting.batch} of 3x{setting.size}x{setting.size}, {setting.channels} channels,"
        f" {setting.device}, {setting.threads} threads, compile {setting.compile}, layout {setting.layout}:"
        f" images per {clock}, medians of {setting.repeats} rounds of {setting.steps} steps,"
        f" {3 * setting.steps} of the Trainer's"
    )
    aside = {"compared": compared, "seconds": seconds, "fp32_convolution_gflops": limit / 1e9}
    leave(setting.output, "train", title, rows, "images/s", **aside)
    print(f"fp32 convolutions of such a network, forward: {limit / 1e9:.0f} GFLOP/s at best")
    for name, figure in compared.items():
        print(f"{figure:6.3f}  {name}")


def _gather(setting: Setting, folder: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Everyone by name and precision, and who can't take part, and why."""
    everyone: dict[str, Any] = {}
    failed: dict[str, str] = {}
    for precision in PRECISIONS:
        everyone[f"{TRAINER}|{precision}"] = TrainerRun(setting, precision, folder / precision)
        everyone[f"{BARE}|{precision}"] = bare(setting, precision)
        for name, peer in PEERS.items():
            try:
                everyone[f"{name}|{precision}"] = peer(setting, precision)
            except ImportError:
                failed[f"{name}|{precision}"] = f"not installed: {INSTALL}"
            except Exception as error:
                failed[f"{name}|{precision}"] = f"{type(error).__name__}: {error}".splitlines()[0]
    return everyone, failed


def _timed(made: Contender | TrainerRun, setting: Setting) -> Callable[[], float]:
    """Seconds of one step, on average over the setting's steps."""
    if isinstance(made, TrainerRun):
        return made.seconds

    def seconds() -> float:
        start = setting.clock()
        for _ in range(setting.steps):
            made.step()
        return (setting.clock() - start) / setting.steps

    return seconds


def _limit(setting: Setting, limits: list[float]) -> float:
    limits.append(convolution_limit(setting.size, setting.channels, setting.batch, setting.clock, setting.device))
    return 1 / limits[-1]


def _counts(made: Contender, setting: Setting) -> dict[str, Any]:
    """Sizes and operations, on an eager step that comes before the others; empty for one that can't make a step."""
    try:
        flops = forward_flops(made.net, setting.images())
        made.step()  # makes the optimizer's state
        counted = None if setting.compile else operations(made.step)
    except Exception:
        return {}
    parameters = sum(p.numel() for p in made.net.parameters())
    counts = {"M params": parameters / 1e6, "GFLOP": flops / 1e9}
    return counts | ({} if counted is None else {"ops/step": counted.count, "reads/step": counted.reads})


def _row(
    key: str, setting: Setting, seconds: Seconds, counts: dict[str, Any], failed: dict[str, str], limit: float
) -> dict[str, Any]:
    name, precision = key.split("|")
    row: dict[str, Any] = {"who": name, "precision": precision}
    if key in failed:
        return row | {"failed": failed[key]}
    rates = [setting.batch / s for s in seconds[key]]
    row |= {"images/s": statistics.median(rates), "least": min(rates), "most": max(rates)}
    reference = seconds.get(f"{DIFFUSERS}|{FP32}")
    if reference:
        row["x diffusers fp32"] = ratio(reference, seconds[key])
    sizes = counts.get(key) or counts.get(f"{BARE}|{precision}", {}) | {"ops/step": None, "reads/step": None}
    if precision == FP32 and "GFLOP" in sizes:
        row["of conv limit"] = row["images/s"] * TRAINING_FLOPS * sizes["GFLOP"] * 1e9 / limit
    return row | sizes


def comparisons(seconds: Seconds, rows: list[dict[str, Any]]) -> dict[str, float]:
    """The ratios that the project has set itself, as far as all that they compare was measured."""
    wanted = {
        "the same step again, which should be 1": (f"{BARE}|{FP32}", "again"),
        "Trainer to diffusers' step, fp32 (aim 1.08)": (f"{DIFFUSERS}|{FP32}", f"{TRAINER}|{FP32}"),
        "Trainer to diffusers' step, bf16 (aim 1.08)": (f"{DIFFUSERS}|{BF16}", f"{TRAINER}|{BF16}"),
        "Trainer in bf16 to diffusers' step at its default (aim 1.75)": (f"{DIFFUSERS}|{FP32}", f"{TRAINER}|{BF16}"),
        "Trainer's time to the bare step's, fp32 (aim at most 1.03)": (f"{TRAINER}|{FP32}", f"{BARE}|{FP32}"),
        "Trainer's time to the bare step's, bf16 (aim at most 1.03)": (f"{TRAINER}|{BF16}", f"{BARE}|{BF16}"),
    }
    found = {
        name: ratio(seconds[slower], seconds[faster])
        for name, (slower, faster) in wanted.items()
        if slower in seconds and faster in seconds
    }
    for row in rows:
        if row["who"] == TRAINER and "of conv limit" in row:
            found["Trainer's share of the fp32 convolutions' limit (aim .60)"] = row["of conv limit"]
    return found


def quieten() -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("lightning.fabric").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
