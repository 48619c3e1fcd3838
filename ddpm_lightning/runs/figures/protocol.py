"""What stands beside a figure: all it takes to get it again, as plain values, as one line, and as a command."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig

from ddpm_lightning.checkpoint import Loaded
from ddpm_lightning.evaluation.features import Features
from ddpm_lightning.evaluation.fidelity import IS_SPLITS, KID_SUBSETS, NEIGHBOURS, kernel_subset
from ddpm_lightning.runs.figures.extraction import VERSIONS
from ddpm_lightning.runs.figures.sides import Samples, Side
from ddpm_lightning.runs.sampling import STEERING, network_passes, plain

NAMES = {"is": "IS", "fid": "FD", "kid": "KD"}  # FID and KID are those in Inception's features


def known_of(loaded: Loaded) -> dict[str, Any]:
    """What is known of a checkpoint, beside what shapes its images."""
    return {
        "training_seed": loaded.config.get("seed"),
        "images_seen": loaded.images_seen,
        "T": loaded.denoiser.schedule.num_steps,
    }


def compared(
    sets: Sequence[Side],
    reference: dict[str, Any],
    features: Features,
    held_out: dict[str, Any] | None,
    metrics: Sequence[str],
) -> dict[str, Any]:
    """The protocol of a comparison in features of one set of images, or of several of a model."""
    generated, model = sets[0], {}
    count, real = len(generated.indices), reference["count"]
    if isinstance(generated, Samples):
        session = generated.session
        model = known_of(session.loaded) | {"network_calls": network_passes(session.sampler, session.denoiser)}
    return {
        "generated": generated.described,
        **model,
        "reference": reference,
        "features": features.protocol,
        "held_out": held_out,
        "versions": VERSIONS,
        "quantisation": "uint8, rounded",
        "metrics": list(metrics),
        "kid_subsets": [KID_SUBSETS, kernel_subset(count, real) if isinstance(real, int) else None],
        "is_splits": IS_SPLITS,
        "prc_neighbours": NEIGHBOURS,
        "num_samples": count,
        "ranges": [[side.indices[0], side.indices[-1]] for side in sets],
    }


def checkpoint_words(d: dict[str, Any], images_seen: int) -> str:
    """A checkpoint, as it stands in the line."""
    averaged = "raw weights" if d["weights"] == "raw" else f"EMA {d['weights']}"
    trained = f"@{short(d['step'])} ({images_seen / 1e6:.4g}M images)"
    return f"{d['checkpoint']['run']} sha256 {d['checkpoint']['sha256'][:8]} {averaged} {trained}"


def model_words(generated: dict[str, Any], p: dict[str, Any]) -> list[str]:
    """A checkpoint and its sampler, as they stand in the line."""
    sampler = generated["sampler"]
    extra = " ".join(f"{key}={value}" for key, value in sampler.items() if key not in ("_target_", "num_steps"))
    options = [f"{key}={generated[key]}" for key in STEERING[1:] if generated[key]]
    options += [generated["precision"]] if generated["precision"] != "32-true" else []
    return [
        checkpoint_words(generated, p["images_seen"]),
        f"{sampler['_target_'].rpartition('.')[2]} {sampler['num_steps']} {extra} T={p['T']} NFE {p['network_calls']}",
        " ".join([f"cond w={generated['guidance']}" if generated["labels"] else "uncond", *options]),
    ]


def line(figure: str, p: dict[str, Any]) -> str:
    """The protocol in one line, beside its first figure."""
    generated, reference, features, versions = p["generated"], p["reference"], p["features"], p["versions"]
    ranges = ", ".join(f"{first}-{last}" for first, last in p["ranges"])
    made = model_words(generated, p) if "checkpoint" in generated else [side_words(generated)]
    where = f" {generated['device']}" if "device" in generated else ""
    return " | ".join(
        [
            figure,
            f"{side_words(reference)} no-flip",
            f"torch-fidelity {versions['torch-fidelity']} {extractor_words(features)}",
            "uint8 rounded",
            *made,
            f"seeds {ranges}" if "checkpoint" in generated else _drawn(generated),
            f"torch {versions['torch']}{where}",
        ]
    )


def side_words(described: dict[str, Any]) -> str:
    """Images, or a file of their statistics, as they stand in the line."""
    words = f"{described['set']} {described['count']} {described['format']} sha256 {described['sha256'][:8]}"
    file = described.get("file")
    return words if file is None else f"{words} by {file['name']} sha256 {file['sha256'][:8]}"


def extractor_words(features: dict[str, Any]) -> str:
    """An extractor, as it stands in the line."""
    words = f"{features['name']} {features['layer']}"
    words += f" sha256 {features['sha256'][:8]}" if features["sha256"] else ""
    return words + (f" accuracy {features['accuracy']:.4f}" if "accuracy" in features else "")


def short(number: int) -> str:
    """50000 as 50k, 1000000 as 1M, 1347 as it is."""
    for unit, letter in ((1_000_000, "M"), (1000, "k")):
        if number >= unit and number % unit == 0:
            return f"{number // unit}{letter}"
    return str(number)


def named(metric: str, features: dict[str, Any], count: int, value: float) -> str:
    """``FID-50k 3.1900``."""
    inception = features["name"].startswith("inception")
    name = metric.upper() if inception and metric in NAMES else NAMES.get(metric, metric)
    return f"{name}-{short(count)} {five_digits(value)}"


def five_digits(value: float) -> str:
    """Significant ones, as some figures are small: 3.1900, 0.00081230."""
    return f"{round(value, 9) + 0:#.5g}"  # plus 0, as rounding leaves -0


def _drawn(described: dict[str, Any]) -> str:
    return f"{described['drawn']} drawn by seed {described['draw_seed']}" if "drawn" in described else "all of them"


def again(script: str, pinned: dict[str, Any]) -> str | None:
    """The command that gives the same figure, of what was typed and what was found; None if none was typed."""
    if not HydraConfig.initialized():
        return None
    typed = [o for o in HydraConfig.get().overrides.task if o.lstrip("+~").partition("=")[0] not in pinned]
    found = [f"{key}={_text(value)}" for key, value in pinned.items()]
    return shlex.join(["python", str(Path("scripts") / script), *typed, *found])


def _text(value: Any) -> str:
    return str(plain(value)).replace(" ", "").replace("'", "") if isinstance(plain(value), list) else str(value)
