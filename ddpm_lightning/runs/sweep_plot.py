"""The picture of a sweep: a figure of each job against each override that varied, or against the network calls."""

import math
import textwrap
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ddpm_lightning.runs.pictures import PlainNumbers
from ddpm_lightning.runs.sweep import CALLS, Job

COLUMNS = 4
NEAREST = 1 / 8  # of the axis: ticks that are nearer would run into each other
LONGEST_TICK = 8
MARKERS = "os^vDPX<>"  # nine, beside ten colours: only the 91st line looks like the first
LONGEST = 16  # letters of a word on an axis, its last; the table has them all


def plot(path: Path, title: str, figure: str, jobs: list[Job], keys: list[str], best: Job | None) -> None:
    """A panel for each key, the jobs' values of it to the right and their figure upwards."""
    columns = min(len(keys), COLUMNS)
    rows = -(-len(keys) // COLUMNS)
    # without pyplot, which would look for a screen
    canvas = Figure(figsize=(max(5.0, 3.2 * columns), 3.0 * rows + 0.6), layout="constrained")
    panels = canvas.subplots(rows, columns, sharey=True, squeeze=False)
    heights = [job.figures[figure] for job in jobs]
    for panel, key in zip(panels.flat, keys, strict=False):
        places = _place(panel, [job.overrides.get(key, "") for job in jobs])
        panel.scatter(places, heights, s=24, alpha=0.7)
        if best is not None:
            i = jobs.index(best)
            panel.scatter(places[i], heights[i], s=140, marker="*", color="tab:red", zorder=3)
        panel.margins(x=0.1)
        panel.set_xlabel(key)
        panel.grid(alpha=0.3)
    for panel in panels.flat[len(keys) :]:
        panel.set_axis_off()
    for panel in panels[:, 0]:
        panel.set_ylabel(figure)
    if _wide(heights):
        panels[0, 0].set_yscale("log")
    canvas.suptitle(textwrap.fill(title, 60), fontsize=10)
    canvas.savefig(path, dpi=120)


def plot_curves(
    path: Path,
    title: str,
    figure: str,
    keys: list[str],
    lines: dict[tuple[str, ...], list[Job]],
    best: Job | None,
) -> None:
    """The figure against the network calls for an image: a line for each group of jobs, named by its values of keys."""
    canvas = Figure(figsize=(8.5, max(4.5, 0.24 * len(lines) + 1.2)), layout="constrained")
    panel = canvas.subplots()
    for i, (values, line) in enumerate(lines.items()):
        calls, heights = zip(*((job.costs[CALLS], job.figures[figure]) for job in line), strict=True)
        name = " ".join(f"{key}={_short(value)}" for key, value in zip(keys, values, strict=True))
        panel.plot(calls, heights, color=f"C{i}", marker=MARKERS[i % len(MARKERS)], label=name)
    if best is not None:
        panel.scatter(best.costs[CALLS], best.figures[figure], s=200, marker="*", color="tab:red", zorder=3)
    jobs = [job for line in lines.values() for job in line]
    if _wide([job.figures[figure] for job in jobs]):
        panel.set_yscale("log")
        panel.yaxis.set_major_formatter(PlainNumbers())
        panel.yaxis.set_minor_formatter(PlainNumbers())
    places = sorted({job.costs[CALLS] for job in jobs})
    if _wide(places):
        panel.set_xscale("log")
    panel.set_xticks(_with_room(places, _wide(places)))
    panel.xaxis.set_major_formatter("{x:g}")
    panel.set_xticks([], minor=True)
    panel.set_xlabel("network calls for an image")
    panel.set_ylabel(figure)
    panel.grid(alpha=0.3, which="both")
    if keys:
        canvas.legend(loc="outside right upper", fontsize=8)
    canvas.suptitle(textwrap.fill(title, 80), fontsize=10)
    canvas.savefig(path, dpi=120)


def _place(panel: Axes, values: list[str]) -> list[float]:
    """Where values stand on the x axis: numbers at themselves, words side by side in the order they came."""
    try:
        numbers = [float(value) for value in values]
    except ValueError:
        numbers = []
    if numbers and all(map(math.isfinite, numbers)):
        if _wide(numbers):
            panel.set_xscale("log")
        ticks = dict(sorted(zip(numbers, values, strict=True)))
        roomy = _with_room(list(ticks), panel.get_xscale() == "log") == list(ticks)
        if max(map(len, values)) < LONGEST_TICK and roomy:
            panel.set_xticks(list(ticks), labels=list(ticks.values()))
            panel.set_xticks([], minor=True)
        return numbers
    words = list(dict.fromkeys(values))
    labels = [_short(word) for word in words]
    panel.set_xticks(range(len(words)), labels=labels)
    if sum(map(len, labels)) > 2 * LONGEST:
        for label in panel.get_xticklabels():
            label.set(rotation=30, horizontalalignment="right")
    panel.set_xlim(-0.5, len(words) - 0.5)
    return [float(words.index(value)) for value in values]


def _short(word: str) -> str:
    return word if len(word) <= LONGEST else f"…{word[1 - LONGEST :]}"


def _with_room(ascending: list[float], log: bool) -> list[float]:
    """The values at which there is room for a tick, beside those before."""
    at = {value: math.log(value) if log else value for value in ascending}
    kept = ascending[:1]
    for value in ascending[1:]:
        if at[value] - at[kept[-1]] >= NEAREST * (at[ascending[-1]] - at[ascending[0]]):
            kept.append(value)
    return kept


def _wide(values: list[float]) -> bool:
    """Whether values span a decade, and need a logarithmic axis."""
    return min(values) > 0 and max(values) >= 10 * min(values)
