"""mode=fidelity: how near generated images are to real ones."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from ddpm_lightning.data.base import ImageDataModule
from ddpm_lightning.evaluation.features import Extracted, Features
from ddpm_lightning.evaluation.fidelity import Statistics, nearest
from ddpm_lightning.images import grid, save_png
from ddpm_lightning.runs.figures.checks import LEAST_SAMPLES, USUAL_SAMPLES, check_asked, check_fit, warn
from ddpm_lightning.runs.figures.extraction import VERSIONS, data_of, extracted, features_of, learns
from ddpm_lightning.runs.figures.given import given_side
from ddpm_lightning.runs.figures.outcome import Outcome, publish
from ddpm_lightning.runs.figures.protocol import again, compared, five_digits, line, named
from ddpm_lightning.runs.figures.reference import Real, Reference, check_dimension, find_reference
from ddpm_lightning.runs.figures.scores import accuracy, by_class, combined, held_out_rows, score
from ddpm_lightning.runs.figures.sides import Samples, Side, split_of
from ddpm_lightning.runs.refusal import Refusal
from ddpm_lightning.runs.sampling import Session, check_device, run_folder, tag

FEW_SAMPLES = 1_000
PAIRS = 10  # samples in the picture of those that are nearest to training images
Data = Callable[[], ImageDataModule]


def fidelity(cfg: DictConfig, session: Session | None) -> float:
    """Generate, score, and publish. Returns the first figure."""
    device = check_device(cfg) if session is None else session.device
    check_asked(cfg, session, device.type)
    data: Data = functools.cache(lambda: data_of(cfg, session and session.loaded))
    reference = find_reference(cfg, data)
    if cfg.metrics is None:
        more = ["prc"] if reference.side else []
        cfg.metrics = ["fid", *more, *(["memorisation"] if cfg.reference == "train" else [])]
    sets = _sets(cfg, session, data, reference)
    shape = sets[0].shape
    if reference.described.get("shape", list(shape)) != list(shape):
        wanted = "x".join(map(str, shape))
        raise Refusal(f"reference={cfg.reference}: must hold images of {wanted}, as the side that is scored")
    _check_same("images_sha256", cfg.images_sha256, sets[0].described.get("sha256"))
    _check_same("reference_sha256", cfg.reference_sha256, reference.sha256)
    features = features_of(cfg, data, shape)
    features.to(device)
    _name_classes(data, features, reference, sets)
    check_fit(cfg, sets[0], reference, features)
    check_dimension(cfg, reference, features, torch.zeros(1, *shape, dtype=torch.uint8))
    warn(cfg, sets[0], reference)

    held_out, new = _held_out(cfg, data, features)
    real = _real(cfg, reference, features)
    first, each, seconds = None, [], 0.0
    for side in sets:
        rows, taken = extracted(side, features, cfg)
        each.append(score(cfg.metrics, rows, real, new) | _accuracies(features, accuracy(rows, side.labels)))
        first, seconds = first or rows, seconds + taken
    assert first is not None
    figures, spread = combined(each)

    protocol = compared(sets, reference.described, features, held_out, cfg.metrics)
    name, count = next(iter(figures)), len(sets[0].indices)
    words = named(name, features.protocol, count, figures[name])
    if name in spread:
        deviation, least = five_digits(spread[name]["std"]), five_digits(spread[name]["min"])
        words += f" mean of {len(sets)}, deviation {deviation}, least {least}"
    outcome = Outcome(figures, line(words, protocol), protocol, _again(cfg, session, sets[0], reference), spread)
    if session is not None:
        outcome.also |= {"network_calls": protocol["network_calls"], "seconds": seconds / len(sets)}
    path = _path(session, protocol)
    if "memorisation" in cfg.metrics:
        _pairs(path.with_name(f"{path.stem}-nearest.png"), sets[0], first, reference, real)
    if cfg.classwise and reference.side is not None and real.rows is not None:
        side, real_labels = sets[0], reference.side.labels
        outcome.tables["classwise"] = by_class(
            first, side.labels or [], real.rows, real_labels or [], reference.side.class_names
        )
    if cfg.export_statistics is not None:
        about = {**reference.described, "features": features.protocol}
        outcome.files[Path(str(cfg.export_statistics)).expanduser()] = lambda file: real.statistics.save(file, about)
    return publish(outcome, path)


def _sets(cfg: DictConfig, session: Session | None, data: Data, reference: Reference) -> list[Side]:
    """What is scored: one side, or as many of other seeds as ``repeats`` says."""
    if session is None:
        side = given_side("images", str(cfg.images), data)
        least = cfg.num_samples or LEAST_SAMPLES
        if len(side.indices) < least:
            raise Refusal(f"images={cfg.images}: must hold at least {least} images, has {len(side.indices)}")
        if least < len(side.indices) and cfg.num_samples is not None:
            side.draw(cfg.num_samples, cfg.seed)
        return [side]
    if cfg.num_samples is None:
        many = reference.side is None or len(reference.side.indices) >= USUAL_SAMPLES / 5
        cfg.num_samples = USUAL_SAMPLES if many else FEW_SAMPLES
    n = cfg.num_samples
    sides = [Samples(session, range(start, start + n)) for start in range(cfg.seed, cfg.seed + n * cfg.repeats, n)]
    if cfg.keep_samples:
        shaped_by = {**sides[0].described, "versions": VERSIONS}
        folder = run_folder(session.loaded.path) / "evaluation" / f"samples-{tag(shaped_by)}"
        folder.mkdir(parents=True, exist_ok=True)
        for side in sides:
            side.folder = folder
    return list(sides)


def _check_same(key: str, wanted: str | None, found: str | None) -> None:
    """Refuse images that are not those the key names."""
    if wanted is not None and (found is None or not same_hash(wanted, found)):
        raise Refusal(f"{key}={wanted}: must be that of the images, sha256-{str(found)[:8]}")


def same_hash(wanted: str, found: str) -> bool:
    """Whether a hash, or eight of its digits or more, after ``sha256-`` or bare, is the beginning of another."""
    digits = str(wanted).removeprefix("sha256-")
    return len(digits) >= 8 and found.startswith(digits)


def _name_classes(data: Data, features: Features, reference: Reference, sets: list[Side]) -> None:
    """Number the classes of folders as the classifier does, or as the reference: by their names."""
    names = data().class_names if learns(features) else reference.side.class_names if reference.side else None
    for side in [*sets, *([reference.side] if reference.side else [])]:
        side.renumber(names)


def _real(cfg: DictConfig, reference: Reference, features: Features) -> Real:
    if reference.side is None:
        assert reference.statistics is not None
        return Real(None, reference.statistics)
    rows, _ = extracted(reference.side, features, cfg)
    return Real(rows, Statistics.of(rows.features))


def _held_out(cfg: DictConfig, data: Data, features: Features) -> tuple[dict[str, Any] | None, Extracted | None]:
    """The held-out split, where memorisation is asked for or a classifier's own accuracy is to be told."""
    if "memorisation" not in cfg.metrics and not learns(features):
        return None, None
    side = split_of(data(), "val")
    return side.described, held_out_rows(side, features, cfg)


def _accuracies(features: Features, found: float | None) -> dict[str, float]:
    """Beside that of generated images stands that of real held-out ones."""
    return {} if found is None else {"accuracy": found, "accuracy_held_out": features.protocol["accuracy"]}


def _pairs(path: Path, side: Side, rows: Extracted, reference: Reference, real: Real) -> None:
    """Draw the samples that are nearest to a training image, above these, with the distance between the two."""
    assert reference.side is not None
    assert real.rows is not None
    distances, places = nearest(rows.features, real.rows.features)
    worst = distances.argsort(stable=True)[:PAIRS]
    above = side.unobserved().images([side.indices[i] for i in worst])
    below = reference.side.images([reference.side.indices[i] for i in places[worst]])
    captions = [f"{distance:.3g}" for distance in distances[worst]]
    path.parent.mkdir(parents=True, exist_ok=True)
    save_png(grid(torch.cat([above, below]), len(worst), [*captions, *captions]), path)


def _again(cfg: DictConfig, session: Session | None, side: Side, reference: Reference) -> str | None:
    pinned: dict[str, Any] = {"num_samples": len(side.indices), "seed": cfg.seed}
    if session is not None:
        pinned |= {"repeats": cfg.repeats, "ckpt_sha256": f"sha256-{session.loaded.sha256[:8]}"}
    else:
        pinned |= {"images_sha256": f"sha256-{side.described['sha256'][:8]}"}
    return again("evaluate.py", {**pinned, "reference_sha256": f"sha256-{reference.sha256[:8]}"})


def _path(session: Session | None, protocol: dict[str, Any]) -> Path:
    folder = Path("runs/evaluation") if session is None else run_folder(session.loaded.path) / "evaluation"
    described = {name: value for name, value in protocol.items() if name != "generated"} | protocol["generated"]
    return folder / f"{tag(described, protocol['num_samples'])}.json"
