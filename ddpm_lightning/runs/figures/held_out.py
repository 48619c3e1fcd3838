"""Images of a data set's split, for the figures that look at single images, and how such figures are left behind."""

import hashlib
import json
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from torch import Tensor

from ddpm_lightning.checkpoint import load_data
from ddpm_lightning.data.resident import scale
from ddpm_lightning.diffusion.noise import PerImageNoise
from ddpm_lightning.runs.build import MISTAKES, explain
from ddpm_lightning.runs.command import write_json
from ddpm_lightning.runs.refusal import Refusal
from ddpm_lightning.runs.sampling import Session, block_of, is_integer, run_folder, settings
from ddpm_lightning.runs.sweep import RESULT

SPLITS = ("val", "train")
HELD_OUT = 4  # first part of the keys of their noise; see data/resident.py for the others


class HeldOut(NamedTuple):
    """Images (N, C, H, W) uint8, their labels (N,) or None, and their places in the split; and what says which."""

    images: Tensor
    labels: Tensor | None
    places: list[int]
    described: dict[str, Any]


class Batch(NamedTuple):
    """Images (B, C, H, W) in [-1, 1] and labels (B,) or None on the device, the noise of each; so many are wanted.

    The others, copies of the last, fill a CPU's batch up, so that an image's bits don't depend on its neighbours.
    """

    start: int
    wanted: int
    x_0: Tensor
    label: Tensor | None
    noise: PerImageNoise


def held_out_images(session: Session, least: int = 1) -> HeldOut:
    """``num_images`` of the ``split``, evenly spread over it, with the labels the network wants."""
    cfg, loaded = session.cfg, session.loaded
    if cfg.split not in SPLITS:
        raise Refusal(f"split={cfg.split}: must be one of {', '.join(SPLITS)}")
    if not cfg.labels and cfg.guidance:
        raise Refusal("labels=false: must be true for guidance, which is between with and without")
    if not cfg.labels and session.num_classes is not None and loaded.label_drop == 0:
        raise Refusal("labels=false: must be true for a network trained with module.label_drop=0")
    try:
        data = load_data(loaded.config, cfg.data.root)
        data.prepare_data()
        images, labels = data.split(cfg.split)
    except MISTAKES as mistake:
        raise Refusal(explain("data", mistake)) from mistake
    total, wanted = len(images), cfg.num_images
    if wanted is not None and not (is_integer(wanted) and least <= wanted <= total):
        allowed = f"null for all, or an integer in [{least}, {total}], the images of split={cfg.split}"
        raise Refusal(f"num_images={wanted}: must be {allowed}")
    count = wanted or total
    places = [i * total // count for i in range(count)]
    described = {
        "set": type(data).__name__,
        "split": cfg.split,
        "size": total,
        "count": count,
        "shape": list(data.image_shape),
        "sha256": data.fingerprint(cfg.split),
    }
    given = cfg.labels and session.num_classes is not None
    return HeldOut(images[places], labels[places] if given else None, places, described)


def batches(session: Session, held_out: HeldOut) -> Iterator[Batch]:
    """All of them in order. An image's noise depends on ``seed`` and its place in the split alone."""
    cfg, device = session.cfg, session.device
    for start in range(0, len(held_out.places), cfg.batch_size):
        chosen = list(range(start, min(start + cfg.batch_size, len(held_out.places))))
        count = len(chosen)
        chosen += chosen[-1:] * (-count % block_of(device))
        keys = [(HELD_OUT, cfg.seed, held_out.places[i]) for i in chosen]
        seeds = [int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]) for key in keys]
        label = None if held_out.labels is None else held_out.labels[chosen].to(device)
        yield Batch(start, count, scale(held_out.images[chosen]).to(device), label, PerImageNoise(seeds, device))


def protocol(session: Session, held_out: HeldOut, **further: Any) -> dict[str, Any]:
    """All that stands behind the figures."""
    loaded = session.loaded
    given = "each image's own" if held_out.labels is not None else None
    return {
        "mode": session.cfg.mode,
        "images": held_out.described,
        "labels": given,
        "T": loaded.denoiser.schedule.num_steps,
        **further,
        "seed": session.cfg.seed,
        "device": str(session.device),
        "versions": {"torch": version("torch")},
        "training_seed": loaded.config.get("seed"),
        "images_seen": loaded.images_seen,
        **settings(session),
    }


def one_line(figure: str, stated: dict[str, Any], options: dict[str, Any]) -> str:
    """The protocol as a line to paste beside the figure; ``options`` are those keys of the command that shape it."""
    images, checkpoint = stated["images"], stated["checkpoint"]
    averaged = stated["weights"] if stated["weights"] == "raw" else f"ema {stated['weights']}"
    steering = {k: stated[k] for k in ("guidance", "guidance_interval", "guidance_rescale", "dynamic_threshold")}
    keys = {"mode": stated["mode"], **options, **{k: v for k, v in steering.items() if v}}
    keys |= {key: stated[key] for key in ("seed", "weights", "precision")}
    return " | ".join(
        [
            figure,
            f"{images['set']} {images['split']} {images['count']} of {images['size']} sha256 {images['sha256'][:8]}",
            f"{checkpoint['run']} sha256 {checkpoint['sha256'][:8]} {averaged} @{stated['step']}"
            f" ({stated['images_seen'] / 1e6:.3g}M images)",
            f"T={stated['T']} {'given labels' if stated['labels'] else 'uncond'}",
            " ".join(f"{key}={_typed(value)}" for key, value in keys.items()),
            f"torch {stated['versions']['torch']} {stated['device']}",
        ]
    )


def _typed(value: Any) -> str:
    """As on the command line."""
    if isinstance(value, list):
        return f"[{','.join(map(_typed, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def evaluation_file(session: Session, stated: dict[str, Any], *name: object) -> Path:
    """Where the figures of this protocol belong, without the ending; the folder is made."""
    folder = run_folder(session.loaded.path) / "evaluation"
    folder.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(json.dumps(stated, sort_keys=True).encode()).hexdigest()
    return folder / "-".join(map(str, (stated["mode"], *name, digest[:6])))


def leave(path: Path, figures: dict[str, float], stated: dict[str, Any], line: str) -> None:
    """Write the figures with their protocol, print the line, and tell a sweep of them."""
    finite = {name: value if np.isfinite(value) else None for name, value in figures.items()}  # JSON knows no others
    write_json(path.with_suffix(".json"), {"metrics": finite, "protocol": stated, "line": line})
    print(f"{line}\n{path.with_suffix('.json')}")
    if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        write_json(Path(HydraConfig.get().runtime.output_dir) / RESULT, {"metrics": figures})
