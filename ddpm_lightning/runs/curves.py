"""What a run logged, as curves over its optimizer steps."""

import csv
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

FEW = 20  # values: as many are not averaged

Row = dict[str, float]


class Curve(NamedTuple):
    """Values by optimizer step, the first step being 1."""

    steps: list[int]
    values: list[float]


def read_log(folder: Path) -> list[Row]:
    """The rows of a run's CSV logs as if it had been started once; none if it has no such log.

    Where a start went on, the rows of earlier ones end: a killed run has logged steps that its successor repeats.
    """
    merged: list[Row] = []
    for file in sorted((folder / "csv").glob("version_*/metrics.csv"), key=_start):
        rows = _rows(file)
        first = min((row["step"] for row in rows), default=math.inf)
        merged = [row for row in merged if row["step"] < first] + rows
    return merged


def _start(file: Path) -> int:
    return int(file.parent.name.removeprefix("version_"))


def _rows(file: Path) -> list[Row]:
    whole = file.read_text().rpartition("\n")[0].splitlines()  # a kill can cut off the last line
    rows = ({name: float(text) for name, text in texts.items() if text} for texts in csv.DictReader(whole))
    return [{**row, "step": row["step"] + 1} for row in rows]  # Lightning counts from 0


def curve(log: list[Row], name: str) -> Curve:
    """One column, where it has values: the last for each step. Empty if there is none of this name."""
    points = {int(row["step"]): row[name] for row in log if name in row}
    return Curve(list(points), list(points.values()))


def columns(log: list[Row], prefix: str) -> list[str]:
    """The names that begin so, in order."""
    return sorted({name for row in log for name in row if name.startswith(prefix)})


def neighbours(count: int) -> int:
    """On how many values to either side of one a mean over it extends, of so many: about 1 % of all together."""
    return count // 200 + 1 if count > FEW else 0


def smooth(values: list[float]) -> list[float]:
    """Centred means; towards the ends over fewer values, so that the first and the last stay what they are."""
    most, last = neighbours(len(values)), len(values) - 1
    reach = [min(most, i, last - i) for i in range(len(values))]
    return [float(np.mean(values[i - n : i + n + 1])) for i, n in enumerate(reach)]


def spread(steps: list[int], count: int) -> list[int]:
    """At most so many of the ascending steps, evenly over training: the first, the last, and the nearest between."""
    if len(steps) <= count:
        return steps
    wanted = np.linspace(steps[0], steps[-1], count)
    return sorted({min(steps, key=lambda step: abs(step - at)) for at in wanted})
