"""What a benchmark leaves: a table on the screen, a JSON file, and a plot."""

import json
import platform
import textwrap
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

Row = Mapping[str, Any]
PACKAGES = ("torch", "lightning", "diffusers", "denoising-diffusion-pytorch")


def leave(folder: Path, name: str, title: str, rows: Sequence[Row], plotted: str | None = None, **facts: Any) -> None:
    """Print the rows as a table with the keys of the first as its head; write ``name.json`` and, if something is to be
    ``plotted``, ``name.png`` too.
    """
    print(f"\n{title}\n{machine()}\n")
    print(table(rows))
    folder.mkdir(parents=True, exist_ok=True)
    content = {"title": title, "machine": machine(), "versions": versions(), **facts, "rows": list(rows)}
    (folder / f"{name}.json").write_text(json.dumps(content, indent=1, default=str) + "\n")
    if plotted:
        plot(folder / f"{name}.png", title, rows, plotted)
    print(f"\n{folder / name}.json" + (f", {name}.png" if plotted else ""))


def table(rows: Sequence[Row]) -> str:
    """Aligned columns: text to the left, numbers to the right."""
    heads = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[_text(row.get(head)) for head in heads] for row in rows]
    widths = [max(map(len, column)) for column in zip(heads, *cells, strict=True)]
    texts = [all(isinstance(row.get(head), str | None) for row in rows) for head in heads]

    def line(values: Sequence[str]) -> str:
        pairs = zip(values, widths, texts, strict=True)
        return "  ".join(v.ljust(w) if text else v.rjust(w) for v, w, text in pairs).rstrip()

    return "\n".join([line(heads), *map(line, cells)])


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def machine() -> str:
    capability = f"CPU ({torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads)"
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{platform.processor() or platform.machine()} {capability}, {device}; " + ", ".join(
        f"{name} {number}" for name, number in versions().items()
    )


def versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def plot(path: Path, title: str, rows: Sequence[Row], key: str) -> None:
    """A bar for each row that has the figure, under the row's texts."""
    from matplotlib.figure import Figure

    drawn = [row for row in rows if isinstance(row.get(key), int | float)]
    labels = [", ".join(list(map(str, (v for v in row.values() if isinstance(v, str))))[:2]) for row in drawn]
    figure = Figure(figsize=(9, 1.1 + 0.35 * len(drawn)), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh(labels, [row[key] for row in drawn])
    axes.bar_label(bars, fmt="%.4g", padding=3)
    axes.invert_yaxis()
    axes.set_xlabel(key)
    axes.margins(x=0.1)  # for the numbers
    figure.suptitle(textwrap.fill(title, 100), fontsize=9)
    figure.savefig(path, dpi=110)
