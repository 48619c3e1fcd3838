"""The table at the end of a sweep."""

import csv
import json
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from ddpm_lightning.runs.command import REFUSED

RESULT = "result.json"


class SweepSummary(Callback):
    """After ``-m``: one row for each job, its overrides and final figures, printed and written as ``summary.csv``.

    Read from the jobs' own files, so that it does not matter which launcher ran them. Ends the process with exit
    code 2 if a job was refused.
    """

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        rows = [row for row in map(_row, sorted(folder.glob("*/"), key=_number)) if row]
        if not rows:
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
        if any(row["status"] == "refused" for row in rows):
            raise SystemExit(2)


def write_result(folder: Path, metrics: dict[str, float]) -> None:
    """Leave a finished job's figures where the table looks for them."""
    overrides = list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []
    record = {"status": "finished", "overrides": overrides, "metrics": metrics}
    (folder / RESULT).write_text(json.dumps(record, indent=1) + "\n")


def _row(folder: Path) -> dict[str, Any] | None:
    for name in (REFUSED, RESULT):
        if (folder / name).is_file():
            record = json.loads((folder / name).read_text())
            overrides = dict(override.lstrip("+~").partition("=")[::2] for override in record["overrides"])
            outcome = {"status": record["status"], **record["metrics"]}
            return {"job": folder.name, **overrides, **outcome}
    return None


def _number(folder: Path) -> tuple[int, str]:
    return (int(folder.name) if folder.name.isdigit() else 10**9, folder.name)


def _text(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)
