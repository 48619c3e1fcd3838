"""Images of a data set's split, for the figures that look at single images, and how such figures are left behind."""

from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from ddpm_lightning.data.resident import scale
from ddpm_lightning.diffusion.noise import PerImageNoise
from ddpm_lightning.runs.figures.extraction import data_of
from ddpm_lightning.runs.figures.outcome import Outcome
from ddpm_lightning.runs.figures.protocol import again, checkpoint_words, known_of, side_words
from ddpm_lightning.runs.figures.sides import split_of
from ddpm_lightning.runs.refusal import Refusal
from ddpm_lightning.runs.sampling import STEERING, Session, block_of, is_integer, run_folder, settings, tag

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
    data = data_of(cfg, loaded)
    if data.image_shape != session.shape:
        raise Refusal(f"data: must hold images of {session.shape}, as the network takes them, has {data.image_shape}")
    images, labels = data.split(cfg.split)
    total, wanted = len(images), cfg.num_images
    if wanted is not None and not (is_integer(wanted) and least <= wanted <= total):
        allowed = f"null for all, or an integer in [{least}, {total}], the images of split={cfg.split}"
        raise Refusal(f"num_images={wanted}: must be {allowed}")
    count = wanted or total
    places = [i * total // count for i in range(count)]
    described = {**split_of(data, cfg.split).described, "used": count}
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
        **further,
        "seed": session.cfg.seed,
        "device": str(session.device),
        "versions": {"torch": version("torch")},
        **known_of(loaded),
        **settings(session),
    }


def one_line(figure: str, stated: dict[str, Any], options: dict[str, Any]) -> str:
    """The protocol as a line to paste beside the figure; ``options`` are those keys of the command that shape it."""
    images = stated["images"]
    keys = {"mode": stated["mode"], **options, **{key: stated[key] for key in STEERING if stated[key]}}
    keys |= {key: stated[key] for key in ("seed", "weights", "precision")}
    return " | ".join(
        [
            figure,
            f"{images['used']} of {side_words(images)}",
            checkpoint_words(stated, stated["images_seen"]),
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
    """Where the figures of this protocol belong; the folder is made."""
    folder = run_folder(session.loaded.path) / "evaluation"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{stated['mode']}-{tag(stated, *name)}.json"


def outcome(session: Session, figures: dict[str, float], stated: dict[str, Any], line: str) -> Outcome:
    """What is to be published of a checkpoint's figures."""
    pinned = {"ckpt_sha256": f"sha256-{session.loaded.sha256[:8]}", "seed": session.cfg.seed}
    return Outcome(figures, line, stated, again("evaluate.py", pinned))
