"""The sampling command: a checkpoint -> pictures."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from tqdm import tqdm

from ddpm_lightning.checkpoint import Loaded, load_denoiser
from ddpm_lightning.diffusion.guidance import GuidedDenoiser, X0Estimator
from ddpm_lightning.diffusion.samplers.base import Sampler
from ddpm_lightning.generation import generate
from ddpm_lightning.images import grid, save_png, to_uint8
from ddpm_lightning.runs.build import MISTAKES, build
from ddpm_lightning.runs.check import check_sampler
from ddpm_lightning.runs.command import write_json
from ddpm_lightning.runs.refusal import Refusal


def sample(cfg: DictConfig) -> None:
    """Generate images, and write them as PNG files and as a grid."""
    loaded, sampler = load(cfg)
    num_classes = loaded.config["model"]["num_classes"]
    labels = _labels(cfg, num_classes)
    described = settings(cfg, loaded)
    described.pop("num_samples")  # more of the same images belong beside them
    folder = Path(cfg.output_dir) if cfg.output_dir else run_folder(loaded.path) / "samples" / tag(cfg, described)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Refusal(f"output_dir={folder}: must be a folder that can be written ({error})") from error
    images = generate_uint8(cfg, loaded, sampler, labels)
    for i, image in enumerate(images):
        save_png(image, folder / f"seed-{cfg.seed + i:06d}.png")
    all_classes = num_classes is not None and cfg.label is None
    save_png(grid(images, num_classes if all_classes else min(8, len(images))), folder / "grid.png")
    write_json(folder / "settings.json", settings(cfg, loaded))
    print(f"{len(images)} images in {folder}, all of them in {folder / 'grid.png'}")


def load(cfg: DictConfig, least_samples: int = 1) -> tuple[Loaded, Sampler]:
    """The checkpoint and the sampler that a command names, found to fit together."""
    device = cfg.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        loaded = load_denoiser(cfg.ckpt, str(cfg.weights), device)
    except (*MISTAKES, KeyError, RuntimeError, ImportError) as error:
        raise Refusal(
            str(error) if str(error).startswith(("ckpt", "weights")) else f"ckpt={cfg.ckpt} device={device}: {error}"
        ) from error
    sampler: Sampler = build(cfg, "sampler")
    check_sampler(sampler, loaded.denoiser)
    for key, least, most in (("num_samples", least_samples, 2**31), ("batch_size", 1, 2**31), ("seed", 0, 2**62)):
        integer = isinstance(cfg[key], int) and not isinstance(cfg[key], bool)
        if cfg[key] is not None and not (integer and least <= cfg[key] < most):
            raise Refusal(f"{key}={cfg[key]}: must be an integer in [{least}, {most})")
    if cfg.guidance < 0:
        raise Refusal(f"guidance={cfg.guidance}: must be at least 0")
    if cfg.guidance and loaded.config["module"].get("label_drop") == 0:
        raise Refusal(f"guidance={cfg.guidance}: must be 0, as {loaded.path} was trained with module.label_drop=0")
    if cfg.guidance and loaded.config["model"]["num_classes"] is None:
        raise Refusal(f"guidance={cfg.guidance}: must be 0, as {loaded.path} was trained without labels")
    return loaded, sampler


def generate_uint8(cfg: DictConfig, loaded: Loaded, sampler: Sampler, labels: list[int] | None) -> Tensor:
    """The images of the seeds from ``cfg.seed`` on, (num_samples, C, H, W) uint8 on the CPU, with a progress bar."""
    denoiser: X0Estimator = loaded.denoiser
    if cfg.guidance:
        denoiser = GuidedDenoiser(denoiser, cfg.guidance, null_label=loaded.config["model"]["num_classes"])
    seeds = range(cfg.seed, cfg.seed + cfg.num_samples)
    shape = loaded.denoiser.image_shape
    device = next(loaded.denoiser.parameters()).device
    with tqdm(total=cfg.num_samples * sampler.num_steps, desc="Sampling", unit="image moves", disable=None) as bar:
        batches = generate(denoiser, sampler, shape, seeds, labels, cfg.batch_size, device, lambda n: bar.update(n))
        return torch.cat([to_uint8(batch).cpu() for batch in batches])


def _labels(cfg: DictConfig, num_classes: int | None) -> list[int] | None:
    """A label for each image: the given one, or given ones in turn, or all classes in turn."""
    given = _given_label(cfg)
    if num_classes is None:
        if given is not None:
            raise Refusal(f"label={given}: must be null, as the checkpoint was trained without labels")
        return None
    chosen = list(range(num_classes)) if given is None else given if isinstance(given, list) else [given]
    if not chosen or any(not isinstance(c, int) or isinstance(c, bool) or not 0 <= c < num_classes for c in chosen):
        raise Refusal(
            f"label={given}: must be an integer in [0, {num_classes - 1}], a list of them, or null for all in turn"
        )
    return [chosen[i % len(chosen)] for i in range(cfg.num_samples)]


def _given_label(cfg: DictConfig) -> Any:
    """The label as it was given: an integer, a plain list, or None, as for commands without the key."""
    label = cfg.get("label")
    return OmegaConf.to_container(label) if OmegaConf.is_list(label) else label


def run_folder(checkpoint: Path) -> Path:
    """The folder of the run that a checkpoint file belongs to."""
    return checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint.parent


def settings(cfg: DictConfig, loaded: Loaded) -> dict[str, Any]:
    """All that shapes the images, plain values."""
    kept = {key: cfg[key] for key in ("num_samples", "seed", "guidance")}
    return {
        **kept,
        "label": _given_label(cfg),
        "sampler": OmegaConf.to_container(cfg.sampler, resolve=True),
        "weights": loaded.weights,
        "checkpoint": {"run": loaded.config.get("name"), "file": loaded.path.name, "sha256": loaded.sha256},
        "step": loaded.step,
    }


def tag(cfg: DictConfig, described: dict[str, Any], *parts: object) -> str:
    """A name for what is described, short and unlike that of anything else: ``ddim-50-1f3a9c``."""
    name = cfg.sampler._target_.rpartition(".")[2].removesuffix("Sampler").lower()
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
    return "-".join(map(str, (name, cfg.sampler.num_steps, *parts, digest[:6])))
