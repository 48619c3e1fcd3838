"""The table at the end of a sweep."""

import csv
import json
import os
import time
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from ddpm_lightning.runs.command import JOB_RECORD

RESULT = "result.json"  # a finished job's figures


class SweepSummary(Callback):
    """After ``-m``: one row for each job, its overrides and final figures, printed and written as ``summary.csv``.

    Read from the jobs' own files, so that it does not matter which launcher ran them; of those that an earlier sweep
    left in the folder, none counts. Ends the process with exit code 1 if a job failed, else 2 if one was refused.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        self.start = time.time()

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        records = [path for path in folder.glob(f"*/{JOB_RECORD}") if path.stat().st_mtime >= self.start - 1]
        rows = [_row(path) for path in sorted(records, key=_number)]
        if not rows or int(os.environ.get("LOCAL_RANK", "0")) > 0:
            return
        columns = list(dict.fromkeys(column for row in rows for column in row))
        with open(folder / "summary.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, columns, restval="")
            writer.writeheader()
            writer.writerows(rows)
        cells = [columns] + [[_text(row.get(column, "")) for column in columns] for row in rows]
        widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
        print(f"\n{folder / 'summary.csv'}")
        for line in cells:
            print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
        outcomes = {row["status"] for row in rows}
        if outcomes != {"finished"}:
            raise SystemExit(1 if "failed" in outcomes else 2)


def _row(path: Path) -> dict[str, Any]:
    record = json.loads(path.read_text())
    overrides = dict(override.lstrip("+~").partition("=")[::2] for override in record.pop("overrides"))
    result = path.with_name(RESULT)
    figures = json.loads(result.read_text())["metrics"] if record["status"] == "finished" and result.exists() else {}
    return {"job": path.parent.name, **overrides, **record, **figures}


def _number(path: Path) -> tuple[int, str]:
    name = path.parent.name
    return (int(name) if name.isdigit() else 10**9, name)


def _text(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)
