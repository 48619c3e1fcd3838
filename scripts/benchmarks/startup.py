"""Seconds from the command to help, a refusal, the first training step; and what imports cost."""

import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.setting import Setting
from benchmarks.show import leave
from ddpm_lightning.callbacks.loss_by_time import LossByTime

SCRIPTS = Path(__file__).resolve().parents[1]
STARTED = "DDPM_BENCHMARK_STARTED"
TRAIN = str(SCRIPTS / "train.py")
FIRST = "callbacks.loss_by_time._target_=benchmarks.startup.FirstStep"


class FirstStep(LossByTime):
    """In place of another callback: ends the process after a step, and says how long after the command it began."""

    def on_train_batch_end(self, *arguments: Any) -> None:
        super().on_train_batch_end(*arguments)
        print(f"first step after {time.time() - float(os.environ[STARTED])} s", flush=True)
        os._exit(0)


def startup(setting: Setting) -> None:
    commands = {
        "--help": (["--help"], "aim 1"),
        "a refused override": (["trainer.max_stepz=3"], "aim 1"),
        "smoke, first training step": (["experiment=smoke", "resume=never", FIRST], "aim 8 on 2 cores"),
        "import of torch alone": (["-c", "import torch"], ""),
        "import of lightning alone": (["-c", "import lightning"], ""),
        "import of ddpm_lightning.runs.train": (["-c", "import ddpm_lightning.runs.train"], ""),
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for turn in range(setting.repeats + 1):
        for name, (arguments, _) in commands.items():
            taken = _seconds(arguments)
            if turn:  # the first fills the disk's cache
                seconds[name].append(taken)
    rows = [
        {"what": name, "seconds": statistics.median(taken), "least": min(taken), "most": max(taken), "aim": aim}
        for (name, (_, aim)), taken in zip(commands.items(), seconds.values(), strict=True)
    ]
    title = f"Seconds until ..., medians of {setting.repeats}, {os.cpu_count()} cores, files in the disk's cache"
    costs = imports()
    leave(setting.output, "startup", title, rows, "seconds", imports=costs)
    print("the costliest imports of a training run, with all that they import, in ms:")
    for package, milliseconds in costs[:12]:
        print(f"{milliseconds:8.0f}  {package}")


def _seconds(arguments: list[str]) -> float:
    with tempfile.TemporaryDirectory() as folder:
        start = time.time()
        environment = {**os.environ, STARTED: str(start), "PYTHONPATH": f"{SCRIPTS.parent}:{SCRIPTS}"}
        command = [sys.executable, *([TRAIN] if arguments[0] != "-c" else []), *arguments]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        taken = time.time() - start
    wanted = 2 if "trainer.max_stepz=3" in arguments else 0
    if done.returncode != wanted:
        raise RuntimeError(f"{' '.join(arguments)} ended with {done.returncode}, not {wanted}: {done.stderr[-500:]}")
    said = re.search(r"first step after ([\d.]+) s", done.stdout)
    if FIRST in arguments and not said:
        raise RuntimeError(f"no first step: {done.stderr[-500:]}")
    return float(said[1]) if said else taken


def imports() -> list[tuple[str, float]]:
    """Packages that a training run imports, and how many ms each takes with all that it imports first."""
    command = [sys.executable, "-X", "importtime", "-c", "import ddpm_lightning.runs.train"]
    environment = {**os.environ, "PYTHONPATH": str(SCRIPTS.parent)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    found = re.findall(r"import time:\s+\d+ \|\s+(\d+) \|\s+([\w.]+)", done.stderr)
    return sorted(((name, int(us) / 1e3) for us, name in found), key=lambda pair: -pair[1])[:40]
