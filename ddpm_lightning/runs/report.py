"""The report of a run: ``report.md`` in its folder, and pictures under ``report/``."""

import statistics
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ddpm_lightning.runs.command import write_text
from ddpm_lightning.runs.curves import curve, neighbours, spread
from ddpm_lightning.runs.pictures import draw_losses, draw_progression, panels
from ddpm_lightning.runs.record import Run, read_json, read_run
from ddpm_lightning.runs.refusal import Refusal

GRIDS = 6  # of the sample progression

Rows = list[tuple[str, str]]


def write_report(folder: Path) -> Path:
    """Write the report of a run from its files alone, be it finished or not; what is missing is said in words.

    Raises Refusal for a folder that holds no training run.
    """
    run = read_run(folder)
    try:
        (folder / "report").mkdir(exist_ok=True)
    except OSError as error:
        raise Refusal(f"{folder}: must be a folder that can be written ({error})") from error
    parts = (_title(run), _facts(run), _losses(run), _samples(run), _evaluation(run), _configuration(run))
    path = folder / "report.md"
    write_text(path, "\n\n".join(parts) + "\n")
    return path


def _title(run: Run) -> str:
    planned = run.facts.get("steps")
    of = f" of {planned}" if planned else ""
    if run.finished:
        return f"# {run.config['name']}: finished at step {run.step}"
    if _is_going_on(run.folder):
        return f"# {run.config['name']}: going on, with its last checkpoint at step {run.step or 0}{of}"
    if run.step is None:
        return f"# {run.config['name']}: stopped before its first checkpoint"
    return f"# {run.config['name']}: stopped at step {run.step}{of}"


def _is_going_on(folder: Path) -> bool:
    try:
        with FileLock(folder / ".lock", timeout=0):
            return False
    except Timeout:
        return True


def _facts(run: Run) -> str:
    rows = [("held-out loss", _held_out(run)), *_cost(run)]
    for title, name, form in (
        ("images per second", "train/images_per_s", "{:.4g}"),
        ("share of the device's peak", "train/share_of_peak", "{:.1%}"),
    ):
        if values := curve(run.log, name).values:
            rows.append((title, f"{form.format(statistics.median(values))} (median)"))
    if not run.facts:
        return (
            f"{_table(('', ''), rows)}\n\nSizes, parameters, device and hours are not known, as there is no `run.json`."
        )
    return _table(("", ""), rows + _sizes(run.facts))


def _cost(run: Run) -> Rows:
    """What the weights have had so far."""
    step, facts = run.step or 0, run.facts
    if not facts:
        return [("steps", str(step)), ("images seen", str(run.images_seen or "not known"))]
    seen, hours = step * facts["batch"], "not recorded"
    if run.train_seconds is not None:
        hours = f"{run.train_seconds * facts['devices'] / 3600:.3g} = {facts['devices']} x {run.train_seconds:.0f} s"
    planned = f"{facts['steps']} planned" if facts["steps"] else "planned without a limit"
    return [
        ("steps", f"{step}, {planned}"),
        ("epochs", f"{seen / facts['training_images']:.1f}, of {facts['training_images']} images"),
        ("images seen", str(seen)),
        ("device hours", hours),
    ]


def _sizes(facts: dict[str, Any]) -> Rows:
    """What run.json says of the set, the network and the machine."""
    parts = ", ".join(f"{part} {count:,}" for part, count in facts["parameters_by_part"].items())
    images = f"{facts['training_images']} training and {facts['held_out_images']} held-out"
    shape = "x".join(map(str, facts["image_shape"]))
    classes = f"{facts['num_classes']} classes" if facts["num_classes"] else "unlabelled"
    batch = f"{facts['batch_size']} x {facts['devices']} devices x {facts['accumulated']} accumulated"
    return [
        ("images", f"{images}, {shape}, {classes}"),
        ("parameters", f"{facts['parameters']:,}: {parts}"),
        ("forward pass", f"{facts['flops'] / 1e9:.4g} GFLOP per image"),
        ("batch", f"{facts['batch']} = {batch}"),
        ("device", facts["device"]),
        ("precision", facts["precision"]),
        ("versions", ", ".join(f"{name} {version}" for name, version in facts["versions"].items())),
        ("started", ", ".join(f"{start['time']} at step {start['step']}" for start in facts["starts"])),
    ]


def _held_out(run: Run) -> str:
    if run.finished:
        return f"{run.result['metrics']['val_loss']:.4f} ({_weights(run)})"
    steps, values = curve(run.log, "val/loss")
    return f"{values[-1]:.4f} at step {steps[-1]} ({_weights(run)})" if steps else "none was logged"


def _losses(run: Run) -> str:
    title = "## Losses\n\n"
    parts = panels(run.log)
    if not parts:
        return f"{title}None were logged in `csv/`."
    draw_losses(run.log, run.folder / "report" / "loss.png")
    most = max((neighbours(len(panel.curves[name].steps)) for panel in parts for name in panel.noisy), default=0)
    thick = f"means over {2 * most + 1} neighbouring values of the log, beside the values themselves (thin)"
    return (
        f"{title}![Losses](report/loss.png)\n\nBy optimizer step. The training losses are"
        f" {thick if most else 'as logged'}; a value of `train/loss` is that of one batch. `q1` is the quarter of T"
        f" nearest to the images, `q4` that nearest to the noise. `val/loss` is that of the {_weights(run)}."
    )


def _weights(run: Run) -> str:
    return "averaged weights" if run.config["callbacks"].get("ema") else "raw weights"


def _samples(run: Run) -> str:
    title = "## Samples\n\n"
    if not run.grids:
        return title + "No sample grids are in `samples/`."
    chosen = spread(list(run.grids), GRIDS)
    shape = run.config["module"]["denoiser"]["image_shape"]
    draw_progression({step: run.grids[step] for step in chosen}, shape, run.folder / "report" / "progression.png")
    newest = max(run.grids)
    return (
        f"{title}![Progression](report/progression.png)\n\nThe top rows of {len(chosen)} of {len(run.grids)} grids,"
        f" from the same noise. The whole grid of step {newest}:\n\n"
        f"![Samples at step {newest}](samples/{run.grids[newest].name})"
    )


def _evaluation(run: Run) -> str:
    title = "## Evaluation\n\n"
    files = sorted((run.folder / "evaluation").glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
    if not files:
        return f"{title}None yet: `python scripts/evaluate.py ckpt={run.folder}`."
    record = read_json(files[-1])
    # an infinite figure, of which JSON knows none, is left as null
    figures = [(name, "inf" if value is None else f"{value:.4f}") for name, value in record["metrics"].items()]
    line = f"```\n{record['line']}\n```\n\n" if "line" in record else ""  # older files have none
    return (
        f"{title}{_table(('figure', ''), figures)}\n\n{line}"
        f"From `evaluation/{files[-1].name}`, the newest of {len(files)}."
    )


def _configuration(run: Run) -> str:
    rows = [("seed", str(run.config.get("seed")))]
    for group, node in run.config.items():
        if isinstance(node, dict):
            members = [node] if "_target_" in node else [member for member in node.values() if member]
            rows.append(
                (group, ", ".join(_called(member, settings="_target_" in node) for member in members) or "none")
            )
    text = (run.folder / "config.yaml").read_text().rstrip()
    full = f"<details>\n<summary>all of it</summary>\n\n```yaml\n{text}\n```\n\n</details>"
    return f"## Configuration\n\n{_table(('group', 'choice'), rows)}\n\n{full}"


def _called(node: dict[str, Any], settings: bool) -> str:
    """``LinearSchedule(num_steps=1000, ...)``, without what are objects themselves."""
    name = node["_target_"].rpartition(".")[2]
    plain = {k: v for k, v in node.items() if not k.startswith("_") and not isinstance(v, dict)}
    plain = {k: v for k, v in plain.items() if not (isinstance(v, list) and any(isinstance(i, dict) for i in v))}
    return f"{name}({', '.join(f'{k}={v}' for k, v in plain.items())})" if settings and plain else name


def _table(head: tuple[str, str], rows: Rows) -> str:
    return "\n".join(f"| {left} | {right} |" for left, right in [head, ("---", "---"), *rows])
