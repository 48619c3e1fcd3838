"""What an evaluation found: printed as a table, written as JSON, and told to a sweep."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from ddpm_lightning.runs.command import write_json
from ddpm_lightning.runs.figures.protocol import five_digits
from ddpm_lightning.runs.sampling import write_csv
from ddpm_lightning.runs.sweep import RESULT


@dataclass
class Outcome:
    """Figures, the first of which counts; the protocol, in full, as one line, and as the command to run again.

    ``spread`` has deviation and least value of figures that are means over several sets of samples. ``also`` is what a
    sweep tells beside the figures. A table is a list of rows, its head first; of further files, each has its writer.
    """

    figures: dict[str, float]
    line: str
    protocol: dict[str, Any]
    again: str | None = None
    spread: dict[str, dict[str, Any]] = field(default_factory=dict)
    also: dict[str, Any] = field(default_factory=dict)
    tables: dict[str, list[tuple[Any, ...]]] = field(default_factory=dict)
    files: dict[Path, Callable[[Path], None]] = field(default_factory=dict)
    printed: bool = False  # whether the figures are on the screen already


def publish(outcome: Outcome, path: Path) -> float:
    """Print all, and write ``path`` and a CSV file for each table beside it. Returns the first figure."""
    for rows in outcome.tables.values():
        print("  ".join(f"{cell!s:<12}" for cell in rows[0]).rstrip())
        for row in rows[1:]:
            cells = (five_digits(cell) if isinstance(cell, float) else str(cell) for cell in row)
            print("  ".join(f"{cell:<12}" for cell in cells).rstrip())
    for name, value in outcome.figures.items() if not outcome.printed else ():
        spread = outcome.spread.get(name)
        varied = f"  +- {five_digits(spread['std'])}, least {five_digits(spread['min'])}" if spread else ""
        print(f"{name:<18}{five_digits(value)}{varied}")
    finite = {
        n: value if math.isfinite(value) else None for n, value in outcome.figures.items()
    }  # JSON knows no others
    record: dict[str, Any] = {"metrics": finite, "line": outcome.line}
    record |= {"again": outcome.again, "spread": outcome.spread, **outcome.also, "protocol": outcome.protocol}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, record)
    for file, write in outcome.files.items():
        write(file)
    for name, (head, *rows) in outcome.tables.items():
        write_csv(path.with_name(f"{path.stem}-{name}.csv"), head, rows)
    if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        found = {"metrics": outcome.figures, **outcome.also}
        write_json(Path(HydraConfig.get().runtime.output_dir) / RESULT, found)
    print(outcome.line)
    if outcome.again:
        print(f"again: {outcome.again}")
    print(path)
    return next(iter(outcome.figures.values()))
