"""The pictures of a run's report."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib import colormaps
from matplotlib.figure import Figure  # without pyplot: no windows, and no setting of the user's is changed
from matplotlib.ticker import LogFormatter
from PIL import Image, ImageDraw, ImageFont

from ddpm_lightning.images import GRID_PADDING, enlargement
from ddpm_lightning.runs.curves import Curve, Row, columns, curve, smooth

MARKED = 30  # points: curves of more are drawn without markers
STRIP_WIDTH, STRIP_HEIGHT = 900, 160  # pixels: the most that is shown of a grid, but for one image at least
CAPTION_WIDTH = 110


class PlainNumbers(LogFormatter):
    """0.02 for 2e-2, at the ticks that Matplotlib finds room to label."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:g}" if super().__call__(x, pos) else ""


class Panel(NamedTuple):
    """A part of the figure: named curves, of which noisy ones are drawn smoothed over what was logged.

    ``ordered`` curves get the colours of a scale.
    """

    title: str
    height: int
    curves: dict[str, Curve]
    noisy: tuple[str, ...] = ()
    log_scale: bool = True
    ordered: bool = False


def panels(log: list[Row]) -> list[Panel]:
    """Losses, those by quarter of the schedule, a distance, and the learning rate; of which there is anything."""
    loss, quarters, held_out, rates = (columns(log, p) for p in ("train/loss", "train/loss_q", "val/loss", "lr-"))
    loss = [name for name in loss if name not in quarters]

    def curves(names: list[str]) -> dict[str, Curve]:
        return {name: curve(log, name) for name in names}

    made = [
        Panel("loss", 3, curves(loss + held_out), tuple(loss)),
        Panel("training loss by quarter of T", 3, curves(quarters), tuple(quarters), ordered=True),
        Panel("Frechet distance of few samples", 2, curves(columns(log, "val/fid"))),
        Panel("learning rate", 1, curves(rates), log_scale=False),
    ]
    return [panel for panel in made if panel.curves]


def draw_losses(log: list[Row], path: Path) -> None:
    """The panels of a log that has any, one below the other, over the optimizer steps."""
    parts = panels(log)
    heights = [panel.height for panel in parts]
    inches = 1.2 * sum(heights) + 0.8
    figure = Figure(figsize=(9, inches))
    figure.subplots_adjust(left=0.09, right=0.98, bottom=0.5 / inches, top=1 - 0.3 / inches, hspace=0.2)
    axes = figure.subplots(len(parts), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for axis, panel in zip(axes, parts, strict=True):
        for i, (name, (steps, values)) in enumerate(panel.curves.items()):
            colour = colormaps["viridis"](i / len(panel.curves)) if panel.ordered else f"C{i}"
            line = smooth(values) if name in panel.noisy else values
            if line != values:
                axis.plot(steps, values, color=colour, alpha=0.35, linewidth=0.8)
            axis.plot(steps, line, "-" if len(steps) > MARKED else ".-", color=colour, label=name)
        if not panel.log_scale:
            axis.set_ylim(bottom=0)
        elif all(value > 0 for _, values in panel.curves.values() for value in values):
            axis.set_yscale("log")
            axis.yaxis.set_major_formatter(PlainNumbers())
            axis.yaxis.set_minor_formatter(PlainNumbers())
        axis.set_title(panel.title, fontsize=10)
        axis.grid(alpha=0.3, which="both")
        axis.legend(fontsize=8)
    axes[-1].set_xlabel("optimizer steps")
    figure.savefig(path, dpi=100)


def draw_progression(grids: dict[int, Path], image_shape: Sequence[int], path: Path) -> None:
    """The top rows of grids of images (C, H, W), one below the other, each with its step.

    Cut to whole images at their own size, as large ones would be illegible if they were shrunk.
    """
    _, height, width = image_shape
    right, bottom = (
        max(1, (room - GRID_PADDING) // cell) * cell + GRID_PADDING
        for room, side in ((STRIP_WIDTH, width), (STRIP_HEIGHT, height))
        for cell in [side * enlargement(width) + GRID_PADDING]
    )
    strips = {}
    for step, file in grids.items():
        with Image.open(file) as grid:
            strips[step] = grid.convert("RGB").crop((0, 0, min(grid.width, right), min(grid.height, bottom)))
    gap = 8
    size = (
        CAPTION_WIDTH + max(strip.width for strip in strips.values()),
        sum(strip.height + gap for strip in strips.values()) - gap,
    )
    picture = Image.new("RGB", size, "white")
    pen, font, top = ImageDraw.Draw(picture), ImageFont.load_default(14), 0
    for step, strip in strips.items():
        pen.text((4, top + strip.height / 2), f"step {step}", "black", font, anchor="lm")
        picture.paste(strip, (CAPTION_WIDTH, top))
        top += strip.height + gap
    picture.save(path)
