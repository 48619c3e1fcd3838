"""The table and the plot at the end of a sweep."""

import csv
import json
import math
import os
import re
import time
from pathlib import Path
from typing import Any, NamedTuple

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from ddpm_lightning.runs.command import JOB_RECORD, searched

RESULT = "result.json"  # a finished job's figures
CALLS = "network_calls"
COSTS = (CALLS, "seconds")  # of an evaluation, for an image and for all of them, beside its figures
LENGTH = "sampler.num_steps"  # what makes a sampler's runs longer, and changes nothing else
# of the figures that a job's first one can be; of memorisation, neither most nor least is best
BEST = {"val_loss": min, "fid": min, "kid": min, "is": max, "precision": max, "bits_per_dim": min, "psnr_ddim": max}


class Job(NamedTuple):
    """What a job was asked, what became of it (its status, and what was wrong), its figures and what they cost."""

    name: str
    overrides: dict[str, str]
    outcome: dict[str, str]
    figures: dict[str, float]
    costs: dict[str, float]


class SweepSummary(Callback):
    """After ``-m``: one row for each job, its overrides and final figures, printed and written as ``summary.csv``;
    the best one by its first figure; and as ``summary.png`` that figure against each override that varied, or, of
    evaluations with more and with fewer steps, against the network calls.

    Read from the jobs' own files, so that it does not matter which launcher ran them; of those that an earlier sweep
    left in the folder, none counts. Ends the process with exit code 1 if a job failed, else 2 if one was refused.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        self.start = time.time()

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        records = [path for path in folder.glob(f"*/{JOB_RECORD}") if path.stat().st_mtime >= self.start - 1]
        jobs = [_read(path) for path in sorted(records, key=_number)]
        if not jobs or int(os.environ.get("LOCAL_RANK", "0")) > 0:
            return
        tabulate(folder / "summary.csv", jobs)
        try:
            compare(folder / "summary.png", jobs, searched(config.hydra))
        finally:  # Hydra makes a mere warning of an error here
            outcomes = {job.outcome["status"] for job in jobs}
            if outcomes != {"finished"}:
                raise SystemExit(1 if "failed" in outcomes else 2)


def tabulate(path: Path, jobs: list[Job]) -> None:
    """Write the table whole, and print it to few digits."""
    rows: list[dict[str, Any]] = [
        {"job": job.name, **job.overrides, **job.outcome, **job.figures, **job.costs} for job in jobs
    ]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
    cells = [columns] + [[_text(row.get(column, "")) for column in columns] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    print(f"\n{path}")
    for line in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def compare(path: Path, jobs: list[Job], search: str | None) -> None:
    """Name the best job, and draw what the overrides made of the first figure; or say why there is nothing to draw."""
    path.unlink(missing_ok=True)  # an earlier sweep's
    figure = next((name for job in jobs for name in job.figures), "")
    measured = [job for job in jobs if math.isfinite(job.figures.get(figure, math.nan))]
    if not measured:
        print("no plot: no job has a figure")
        return
    keys = list(dict.fromkeys(key for job in jobs for key in job.overrides))
    varied = [key for key in keys if len({job.overrides.get(key) for job in jobs}) > 1]
    choose = {"minimize": min, "maximize": max}.get(search or "", BEST.get(figure))
    best = choose(measured, key=lambda job: job.figures[figure]) if choose else None
    if best is not None:
        settings = " ".join(f"{key}={_text(best.overrides[key])}" for key in varied if key in best.overrides)
        print(f"best: job {best.name}, {figure} {_text(best.figures[figure])}" + (f": {settings}" if settings else ""))
    if not varied:
        print("no plot: no override varied")
        return
    from ddpm_lightning.runs.sweep_plot import plot, plot_curves  # imports matplotlib: only now

    title = f"{figure} of {_counted(jobs, measured)}" + (f"; star: the best, job {best.name}" if best else "")
    others = [key for key in varied if key != LENGTH]
    if lines := curves(measured, others):
        plot_curves(path, title, figure, others, lines, best)
    else:
        plot(path, title, figure, measured, varied, best)
    print(path)


def curves(jobs: list[Job], keys: list[str]) -> dict[tuple[str, ...], list[Job]]:
    """The jobs by their values of these keys, in the order of their network calls; none if all have a single point."""
    if not all(CALLS in job.costs for job in jobs):
        return {}
    lines: dict[tuple[str, ...], list[Job]] = {}
    for job in jobs:
        lines.setdefault(tuple(job.overrides.get(key, "") for key in keys), []).append(job)
    for line in lines.values():
        line.sort(key=lambda job: job.costs[CALLS])
    return lines if any(line[0].costs[CALLS] < line[-1].costs[CALLS] for line in lines.values()) else {}


def _counted(jobs: list[Job], measured: list[Job]) -> str:
    """How many jobs have a point in the plot, and what became of the others."""
    status = [job.outcome["status"] for job in jobs if job not in measured]
    others = {"finished": "without a finite figure"}
    counts = [f"{status.count(name)} {others.get(name, name)}" for name in dict.fromkeys(status)]
    return f"{len(measured)} of {len(jobs)} jobs" + (f" ({', '.join(counts)})" if counts else "")


def _read(path: Path) -> Job:
    record = json.loads(path.read_text())
    overrides = dict(override.lstrip("+~").partition("=")[::2] for override in record.pop("overrides"))
    result = path.with_name(RESULT)
    found = json.loads(result.read_text()) if record["status"] == "finished" and result.exists() else {"metrics": {}}
    costs = {name: found[name] for name in COSTS if name in found}
    return Job(path.parent.name, overrides, record, found["metrics"], costs)


def _number(path: Path) -> tuple[int, str]:
    name = path.parent.name
    return (int(name) if name.isdigit() else 10**9, name)


def _text(value: Any) -> str:
    if isinstance(value, str) and re.fullmatch(r"-?\d*\.\d{6,}(e-?\d+)?", value):  # Optuna's values have 17 digits
        value = float(value)
    return f"{value:.5g}" if isinstance(value, float) else str(value)
