"""A local page: pick a checkpoint, and see what it makes, and how."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ddpm_lightning.checkpoint import Loaded, find_checkpoint, load_denoiser
from ddpm_lightning.diffusion.guidance import steered
from ddpm_lightning.generation import film, spread
from ddpm_lightning.images import grid, save_gif, to_uint8
from ddpm_lightning.runs.check import check_sampler
from ddpm_lightning.runs.refusal import Refusal
from ddpm_lightning.runs.sampling import DEVICES, named_sampler, sampler_names

MOST_IMAGES = 64
MOST_FRAMES = 60
SECONDS = 3.0  # of the film
ALL = "all in turn"


def find_runs(folder: Path) -> list[str]:
    """The runs below a folder that have a checkpoint, newest first."""
    files = sorted(folder.glob("**/checkpoints/last.ckpt"), key=lambda path: path.stat().st_mtime, reverse=True)
    return [str(path.parent.parent) for path in files]


class Studio:
    """What the page calls. Keeps the model that was used last."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.newest: tuple[str, Loaded] | None = None

    def model(self, run: str) -> Loaded:
        """The model of a run folder. Raises Refusal without one."""
        try:
            stamp = f"{run} {find_checkpoint(run).stat().st_mtime_ns}"
            if self.newest is None or self.newest[0] != stamp:
                self.newest = (stamp, load_denoiser(run, device=self.device))
        except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
            raise Refusal(str(error)) from error
        return self.newest[1]

    def labels(self, run: str) -> list[str]:
        """What can be chosen as a label."""
        model = self.model(run)
        count = model.num_classes
        names = model.class_names
        return [ALL] + [names[i] if names else str(i) for i in range(count or 0)]

    def draw(
        self, run: str, label: str, sampler: str, num_steps: float, guidance: float, seed: float, num_images: float
    ) -> Iterator[tuple[Any, str | None, str]]:
        """The picture (H, W, 3) uint8 as it comes about; at the end the path of its film as well. And what is going on.

        Raises Refusal for what the model can't do.
        """
        model = self.model(run)
        if any(value is None for value in (num_steps, guidance, seed, num_images)):
            raise Refusal("steps, guidance, seed and images must have values")
        if label not in self.labels(run):
            raise Refusal(f"label={label}: must be one of {', '.join(self.labels(run))}")
        made = named_sampler(sampler, int(num_steps))
        check_sampler(made, model.denoiser)
        if not 1 <= num_images <= MOST_IMAGES:
            raise Refusal(f"images={num_images:g}: must lie in [1, {MOST_IMAGES}]")
        if not 0 <= seed < 2**62:
            raise Refusal(f"seed={seed:g}: must be at least 0")
        count = model.num_classes
        seeds = range(int(seed), int(seed) + int(num_images))
        labels = None
        if count is not None:
            chosen = self.labels(run).index(label) - 1
            labels = [s % count if chosen < 0 else chosen for s in seeds]
        try:
            denoiser = steered(model.denoiser, count, guidance, label_drop=model.label_drop)
        except ValueError as mistake:
            raise Refusal(str(mistake)) from mistake
        columns = max(1, round(len(seeds) ** 0.5))
        frames = []
        for i, (_, x, _) in enumerate(film(denoiser, made, model.denoiser.image_shape, seeds, labels, self.device)):
            frames.append(grid(to_uint8(x).cpu(), columns))
            yield _picture(frames[-1]), None, f"step {i} of {made.num_steps}"
        path = Path(tempfile.mkdtemp(prefix="ddpm-")) / "film.gif"
        save_gif([frames[i] for i in spread(len(frames), MOST_FRAMES)], path, SECONDS)
        yield _picture(frames[-1]), str(path), f"{len(seeds)} images, {made.num_calls} network calls"


def _picture(image: torch.Tensor) -> Any:
    return image.permute(1, 2, 0).numpy()


def _opens(studio: Studio, run: str) -> bool:
    """Whether a run can be offered; one that is broken must not keep the others away."""
    try:
        studio.model(run)
    except Refusal as refusal:
        print(f"left out: {refusal}")
        return False
    return True


def page(folder: Path, device: str) -> Any:
    """The page, for the runs below a folder. Raises Refusal if there is none, or gradio is not installed."""
    runs = find_runs(folder)
    if not runs:
        raise Refusal(f"{folder}: must be a folder with runs that have checkpoints, such as runs")
    if device.partition(":")[0] not in DEVICES:
        raise Refusal(f"device={device}: must be one of {', '.join(DEVICES)}")
    studio = Studio(device)
    runs = [run for run in runs if _opens(studio, run)]
    if not runs:
        raise Refusal(f"{folder}: must have a run whose checkpoint can be read")
    try:
        import gradio as gr
    except ImportError as error:
        raise Refusal("the app needs pip install -e '.[app]'") from error

    def labels_of(run: str) -> Any:
        choices = studio.labels(run)
        return gr.Dropdown(choices=choices, value=choices[0])

    def draw(*settings: Any) -> Iterator[Any]:
        try:
            yield from studio.draw(*settings)
        except Refusal as refusal:
            raise gr.Error(str(refusal)) from refusal

    with gr.Blocks(title="ddpm-lightning", analytics_enabled=False) as blocks:
        gr.Markdown("# ddpm-lightning")
        with gr.Row():
            with gr.Column(scale=1):
                run = gr.Dropdown(runs, value=runs[0], label="run", elem_id="run")
                label = gr.Dropdown(studio.labels(runs[0]), value=ALL, label="label", elem_id="label")
                sampler = gr.Dropdown(sampler_names(), value="dpm_solver", label="sampler", elem_id="sampler")
                steps = gr.Slider(1, 1000, 20, step=1, label="steps", elem_id="steps")
                guidance = gr.Slider(0, 10, 0, step=0.1, label="guidance", elem_id="guidance")
                seed = gr.Number(0, precision=0, minimum=0, label="seed", elem_id="seed")
                images = gr.Slider(1, MOST_IMAGES, 16, step=1, label="images", elem_id="images")
                button = gr.Button("Draw", variant="primary", elem_id="draw")
            with gr.Column(scale=2):
                picture = gr.Image(label="images", elem_id="picture", show_label=False)
                way = gr.Image(label="from noise", elem_id="film", type="filepath")
                status = gr.Textbox(label="status", elem_id="status")
        run.change(labels_of, run, label)
        button.click(draw, [run, label, sampler, steps, guidance, seed, images], [picture, way, status])
    return blocks
