"""mode=fidelity: how near generated images are to real ones."""

import functools
import hashlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig

from ddpm_lightning.data.base import ImageDataModule
from ddpm_lightning.evaluation.features import Extracted, Features
from ddpm_lightning.evaluation.fidelity import METRICS, Statistics, nearest
from ddpm_lightning.images import grid, save_png
from ddpm_lightning.runs.figures.extraction import data_of, extracted, features_of
from ddpm_lightning.runs.figures.outcome import Outcome, publish
from ddpm_lightning.runs.figures.protocol import again, compared, five_digits, line, named
from ddpm_lightning.runs.figures.scores import accuracy, by_class, combined, score
from ddpm_lightning.runs.figures.sides import Samples, Side, given_side, split_of
from ddpm_lightning.runs.refusal import Refusal
from ddpm_lightning.runs.sampling import Session, check_integer, run_folder, tag
from ddpm_lightning.runs.sharing import check_devices

USUAL_SAMPLES = 50_000
FEW_SAMPLES = 1_000
LEAST_SAMPLES = 10  # the inception score has 10 splits, precision looks at 3 neighbours
PAIRS = 10  # samples in the picture of those that are nearest to training images
FOR_STATISTICS = ("fid", "is")  # metrics that mean and covariance of the reference are enough for


class Reference(NamedTuple):
    """What is compared with: images, or the statistics of such; and what is known of them."""

    side: Side | None
    statistics: Statistics | None
    described: dict[str, Any]


def fidelity(cfg: DictConfig, session: Session | None) -> float:
    """Generate, score, and publish. Returns the first figure."""
    _check(cfg, session)
    data = functools.cache(lambda: data_of(cfg, session and session.loaded))
    reference = _reference(cfg, data)
    sets = _sets(cfg, session, data, reference)
    shape = sets[0].shape
    if reference.described.get("shape", list(shape)) != list(shape):
        wanted = "x".join(map(str, shape))
        raise Refusal(f"reference={cfg.reference}: must hold images of {wanted}, as the side that is scored")
    features = features_of(cfg, data, shape)
    _compatible(cfg, reference, features)
    _warn(cfg, sets[0], reference)
    features.to(torch.device("cpu") if session is None else session.device)

    held_out = _held_out(cfg, data, features)
    real = reference.statistics or extracted(_images(reference), features, cfg)[0]
    rows, seconds = zip(*(extracted(side, features, cfg) for side in sets), strict=True)
    if isinstance(real, Statistics) and len(real.mean) != rows[0].features.shape[1]:
        allowed = f"must be of {rows[0].features.shape[1]} features, has {len(real.mean)}"
        raise Refusal(f"reference={cfg.reference}: {allowed}")
    figures, spread = combined(
        [
            score(cfg.metrics, fake, real, held_out) | _accuracies(features, accuracy(fake, side.labels))
            for fake, side in zip(rows, sets, strict=True)
        ]
    )

    count = len(sets[0].indices)
    ranges = [[side.indices[0], side.indices[-1]] for side in sets]
    protocol = compared(sets[0], ranges, reference.described, features, {"num_samples": count})
    also = {"seconds": sum(seconds) / len(sets)} if session else {}
    also |= {"network_calls": protocol["network_calls"]} if session else {}
    words = named(next(iter(figures)), features.protocol, count, next(iter(figures.values())))
    if first := spread.get(next(iter(figures))):
        words += f" mean of {len(sets)}, deviation {five_digits(first['std'])}, least {five_digits(first['min'])}"
    outcome = Outcome(figures, line(words, protocol), protocol, _again(cfg, session, count), spread, also)
    path = _path(cfg, session, protocol)
    if "memorisation" in cfg.metrics and isinstance(real, Extracted):
        _pairs(path.with_name(f"{path.stem}-nearest.png"), sets[0], rows[0], _images(reference), real)
    if cfg.classwise:
        outcome.tables["classwise"] = _classwise(sets[0], rows[0], reference, real)
    if cfg.export_statistics is not None:
        _export(Path(str(cfg.export_statistics)).expanduser(), real, protocol)
    return publish(outcome, path)


def _check(cfg: DictConfig, session: Session | None) -> None:
    unknown = [m for m in cfg.metrics if m not in METRICS]
    if unknown or not cfg.metrics:
        raise Refusal(f"metrics={list(cfg.metrics)}: must be a list of some of {', '.join(METRICS)}")
    if (session is None) == (cfg.images is None):
        raise Refusal(f"ckpt={cfg.ckpt}, images={cfg.images}: one of the two must be given, as what is scored")
    if "memorisation" in cfg.metrics and cfg.reference != "train":
        raise Refusal(f"metrics=[memorisation]: needs reference=train, the images to remember, got {cfg.reference}")
    for key in ("batch_size", "repeats"):
        check_integer(cfg, key, 1)
    if cfg.num_samples is not None:
        check_integer(cfg, "num_samples", LEAST_SAMPLES)
    if session is None and (cfg.repeats > 1 or cfg.keep_samples):
        raise Refusal("repeats, keep_samples: must be 1 and false for images=..., as nothing is generated")
    check_devices(cfg, "cpu" if session is None else session.device.type)


def _reference(cfg: DictConfig, data: Callable[[], ImageDataModule]) -> Reference:
    path = Path(str(cfg.reference)).expanduser()
    if path.suffix == ".npz" and path.is_file():
        try:
            found, about = Statistics.load(path)
        except KeyError:  # images, perhaps
            pass
        except (OSError, ValueError) as mistake:
            raise Refusal(f"reference={path}: must be a file of images or of mu and sigma ({mistake})") from mistake
        else:
            sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
            unsaid = {"set": path.name, "count": "?", "format": "statistics", "sha256": sha256}
            return Reference(None, found, about or unsaid)
    side = given_side("reference", str(cfg.reference), data)
    if len(side.indices) < LEAST_SAMPLES:
        few = f"must hold at least {LEAST_SAMPLES} images, has {len(side.indices)}"
        raise Refusal(f"reference={cfg.reference}: {few}")
    return Reference(side, None, side.described)


def _sets(
    cfg: DictConfig, session: Session | None, data: Callable[[], ImageDataModule], reference: Reference
) -> list[Side]:
    """What is scored: one side, or as many of other seeds as ``repeats`` says."""
    if session is None:
        side = given_side("images", str(cfg.images), data)
        least = cfg.num_samples or LEAST_SAMPLES
        if len(side.indices) < least:
            raise Refusal(f"images={cfg.images}: must hold at least {least} images, has {len(side.indices)}")
        if cfg.num_samples is not None:
            side.indices = side.indices[: cfg.num_samples]
            side.labels = side.labels and side.labels[: cfg.num_samples]
        return [side]
    if cfg.num_samples is None:
        many = reference.side is None or len(reference.side.indices) >= USUAL_SAMPLES / 5
        cfg.num_samples = USUAL_SAMPLES if many else FEW_SAMPLES
    n = cfg.num_samples
    starts = [cfg.seed + n * i for i in range(cfg.repeats)]
    sides = [Samples(session, range(start, start + n)) for start in starts]
    if cfg.keep_samples:
        folder = run_folder(session.loaded.path) / "evaluation" / f"samples-{tag(sides[0].described)}"
        folder.mkdir(parents=True, exist_ok=True)
        for side in sides:
            side.folder = folder
    return list(sides)


def _images(reference: Reference) -> Side:
    assert reference.side is not None  # or there would be statistics
    return reference.side


def _compatible(cfg: DictConfig, reference: Reference, features: Features) -> None:
    """Refuse what statistics alone are not enough for, and those of other features."""
    if reference.statistics is None:
        return
    more = [metric for metric in cfg.metrics if metric not in FOR_STATISTICS]
    if more or cfg.classwise:
        asked = f"metrics={more}" if more else "classwise=true"
        raise Refusal(f"{asked}: needs reference images, and reference={cfg.reference} holds their statistics alone")
    known = reference.described.get("features")
    if known is None:
        warnings.warn(f"reference={cfg.reference}: does not say what it is of; the figure is as good", stacklevel=3)
    elif known["sha256"] != features.protocol["sha256"]:
        other = f"{known['name']} sha256 {known['sha256'][:8]}"
        raise Refusal(f"reference={cfg.reference}: must be of the same features, is of {other}")


def _warn(cfg: DictConfig, side: Side, reference: Reference) -> None:
    count = len(side.indices)
    if "fid" in cfg.metrics and count < USUAL_SAMPLES:
        few = f"{count} samples are fewer than {USUAL_SAMPLES}, which biases the Frechet distance upwards"
        warnings.warn(f"{few}: it compares only with distances of as many", stacklevel=3)
    formats = "jpeg" in side.described.get("format", ""), "jpeg" in reference.described.get("format", "")
    if formats[0] != formats[1]:
        which = "what is scored comes" if formats[0] else "the reference comes"
        warnings.warn(f"{which} from JPEG files and the other side does not, which moves the figure", stacklevel=3)


def _held_out(cfg: DictConfig, data: Callable[[], ImageDataModule], features: Features) -> Extracted | None:
    """Features of the held-out split, where memorisation is asked for or a classifier's own accuracy is to be told."""
    learned = "classifier" in features.protocol["name"]
    if "memorisation" not in cfg.metrics and not learned:
        return None
    side = split_of(data(), "val")
    rows, _ = extracted(side, features, cfg)
    right = accuracy(rows, side.labels)
    if right is not None:
        features.protocol["accuracy"] = right
    return rows


def _accuracies(features: Features, found: float | None) -> dict[str, float]:
    """Beside that of generated images stands that of real held-out ones."""
    return {} if found is None else {"accuracy": found, "accuracy_held_out": features.protocol["accuracy"]}


def _classwise(
    side: Side, rows: Extracted, reference: Reference, real: Extracted | Statistics
) -> list[tuple[Any, ...]]:
    real_side = _images(reference)
    if side.labels is None or real_side.labels is None or isinstance(real, Statistics):
        raise Refusal("classwise=true: needs labels on either side")
    return by_class(rows, side.labels, real, real_side.labels, real_side.class_names)


def _pairs(path: Path, side: Side, rows: Extracted, reference: Side, real: Extracted) -> None:
    """Draw the samples that are nearest to a training image, above these, with the distance between the two."""
    distances, places = nearest(rows.features, real.features)
    worst = distances.argsort(stable=True)[:PAIRS]
    with torch.no_grad():
        above = side.images([side.indices[i] for i in worst])
    below = reference.images([reference.indices[i] for i in places[worst]])
    captions = [f"{distance:.3g}" for distance in distances[worst]]
    path.parent.mkdir(parents=True, exist_ok=True)
    save_png(grid(torch.cat([above, below]), len(worst), [*captions, *captions]), path)


def _export(path: Path, real: Extracted | Statistics, protocol: dict[str, Any]) -> None:
    statistics = real if isinstance(real, Statistics) else Statistics.of(real.features)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        statistics.save(path, {**protocol["reference"], "features": protocol["features"]})
    except OSError as error:
        raise Refusal(f"export_statistics={path}: must be a file that can be written ({error})") from error


def _again(cfg: DictConfig, session: Session | None, count: int) -> str | None:
    pinned: dict[str, Any] = {"num_samples": count}
    if session is not None:
        pinned |= {"ckpt_sha256": session.loaded.sha256[:8], "seed": cfg.seed, "repeats": cfg.repeats}
    return again("evaluate.py", pinned)


def _path(cfg: DictConfig, session: Session | None, protocol: dict[str, Any]) -> Path:
    folder = Path("runs/evaluation") if session is None else run_folder(session.loaded.path) / "evaluation"
    described = {name: value for name, value in protocol.items() if name != "generated"} | protocol["generated"]
    return folder / f"{tag(described, protocol['num_samples'])}.json"
