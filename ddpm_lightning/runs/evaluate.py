"""The evaluation command: a checkpoint -> figures, with all it takes to get them again."""

import json
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig
from torch import Tensor
from tqdm import tqdm

from ddpm_lightning.checkpoint import Loaded, load_data
from ddpm_lightning.data.base import ImageDataModule
from ddpm_lightning.data.resident import LabelledImages
from ddpm_lightning.evaluation.features import Classifier, Extracted, Features, Inception
from ddpm_lightning.evaluation.fidelity import (
    METRICS,
    frechet_distance,
    inception_score,
    kernel_distance,
    memorisation_ratio,
    precision_recall,
)
from ddpm_lightning.runs.build import MISTAKES, build, explain
from ddpm_lightning.runs.command import write_json
from ddpm_lightning.runs.refusal import Refusal
from ddpm_lightning.runs.sampling import (
    Session,
    check_integer,
    generate_uint8,
    network_passes,
    open_session,
    run_folder,
    sampling_context,
    settings,
    tag,
)
from ddpm_lightning.runs.sweep import RESULT

USUAL_SAMPLES = 50_000
FEW_SAMPLES = 1_000
LEAST_SAMPLES = 10  # the inception score has 10 splits, precision looks at 3 neighbours


def evaluate(cfg: DictConfig) -> float:
    """The figures of the chosen mode."""
    if cfg.mode == "fidelity":
        return fidelity(cfg)
    from ddpm_lightning.runs.figures.likelihood import likelihood
    from ddpm_lightning.runs.figures.reconstruction import reconstruction

    session = open_session(cfg)
    with sampling_context(session):
        return {"likelihood": likelihood, "reconstruction": reconstruction}[cfg.mode](session)


def fidelity(cfg: DictConfig) -> float:
    """Generate, score, print a table, and write a JSON file with the protocol. Returns the first figure."""
    unknown = [m for m in cfg.metrics if m not in METRICS]
    if unknown or not cfg.metrics:
        raise Refusal(f"metrics={list(cfg.metrics)}: must be a list of some of {', '.join(METRICS)}")
    session = open_session(cfg)
    if cfg.num_samples is not None:
        check_integer(cfg, "num_samples", LEAST_SAMPLES)
    loaded = session.loaded
    data, train, held_out = _reference(cfg, loaded)
    features = _features(cfg, data, train)
    if cfg.num_samples is None:
        cfg.num_samples = USUAL_SAMPLES if len(train.images) >= USUAL_SAMPLES / 5 else FEW_SAMPLES
    if cfg.num_samples < USUAL_SAMPLES and isinstance(features, Inception):
        few = f"num_samples={cfg.num_samples}: below the usual {USUAL_SAMPLES}"
        warnings.warn(f"{few}, which biases the Frechet distance upwards; do not compare", stacklevel=1)

    num_classes = session.num_classes
    labels = None if num_classes is None else [i % num_classes for i in range(cfg.num_samples)]
    features.to(session.device)
    with sampling_context(session):
        images = torch.cat(list(generate_uint8(session, range(cfg.seed, cfg.seed + cfg.num_samples), labels)))
    figures = score(cfg.metrics, features, images, train.images, held_out.images, cfg.batch_size)
    if labels is not None:
        figures |= accuracies(features, images, torch.tensor(labels), held_out)

    stated = protocol(session, features, data)
    path = run_folder(loaded.path) / "evaluation" / f"{tag(cfg, stated, cfg.num_samples)}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {"metrics": {**_earlier(path, stated), **figures}, "protocol": stated}
    write_json(path, record)
    for name, value in figures.items():
        print(f"{name:<18}{value:.4f}")
    print(f"{one_line(figures, stated)}\n{path}")
    if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        write_json(Path(HydraConfig.get().runtime.output_dir) / RESULT, {"metrics": figures})
    return next(iter(figures.values()))


def _features(cfg: DictConfig, data: ImageDataModule, train: LabelledImages) -> Features:
    """The extractor that was asked for, or that suits the set, with what it has to learn."""
    try:
        if cfg.get("features"):
            features: Features = build(cfg, "features")
        else:
            features = Inception() if data.image_shape[0] == 3 else Classifier()
        features.fit(train.images, train.labels)
    except MISTAKES as mistake:
        raise Refusal(explain("features", mistake)) from mistake
    return features


def _earlier(path: Path, stated: dict[str, Any]) -> dict[str, float]:
    """Figures that are there of the very same protocol, from an evaluation with other metrics."""
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return record["metrics"] if record["protocol"] == json.loads(json.dumps(stated)) else {}


def _reference(cfg: DictConfig, loaded: Loaded) -> tuple[ImageDataModule, LabelledImages, LabelledImages]:
    try:
        data = load_data(loaded.config, cfg.data.root)
        data.prepare_data()
        return data, data.split("train"), data.split("val")
    except MISTAKES as mistake:
        raise Refusal(explain("data", mistake)) from mistake


def score(
    metrics: list[str], features: Features, generated: Tensor, training: Tensor, held_out: Tensor, batch_size: int
) -> dict[str, float]:
    """Figures of generated images against the training split; all images (N, C, H, W) uint8."""
    fake, real = (extract(features, images, batch_size) for images in (generated, training))
    figures: dict[str, float] = {}
    if "fid" in metrics:
        figures["fid"] = frechet_distance(fake.features, real.features)
    if "kid" in metrics:
        figures["kid"], figures["kid_std"] = kernel_distance(fake.features, real.features)
    if "is" in metrics:
        figures["is"] = inception_score(fake.logits)
    if "prc" in metrics:
        figures["precision"], figures["recall"] = precision_recall(fake.features, real.features)
    if "memorisation" in metrics:
        new = extract(features, held_out, batch_size)
        figures["memorisation"] = memorisation_ratio(fake.features, real.features, new.features)
    return figures


def accuracies(features: Features, images: Tensor, labels: Tensor, held_out: LabelledImages) -> dict[str, float]:
    """How often a classifier finds the label an image was made for; and for scale, that of a real held-out image."""
    predicted, real = features.classify(images), features.classify(held_out.images)
    if predicted is None or real is None:
        return {}
    return {
        "accuracy": (predicted == labels).double().mean().item(),
        "accuracy_held_out": (real == held_out.labels).double().mean().item(),
    }


def extract(features: Features, images: Tensor, batch_size: int) -> Extracted:
    """Features of all images, batch by batch."""
    parts = [features(batch) for batch in tqdm(images.split(batch_size), "Features", leave=False, disable=None)]
    return Extracted(*(torch.cat(column) for column in zip(*parts, strict=True)))


def protocol(session: Session, features: Features, data: ImageDataModule) -> dict[str, Any]:
    """All that stands behind the figures."""
    cfg, loaded = session.cfg, session.loaded
    return {
        "reference": {
            "set": type(data).__name__,
            "split": "train",
            "count": len(data.split("train").images),
            "shape": list(data.image_shape),
            "flip": False,
            "sha256": data.fingerprint("train"),
        },
        "features": features.protocol,
        "versions": {name: version(name) for name in ("torch-fidelity", "torch", "scikit-learn")},
        "device": str(session.device),
        "quantisation": "uint8, rounded",
        "training_seed": loaded.config.get("seed"),
        "images_seen": loaded.images_seen,
        "T": loaded.denoiser.schedule.num_steps,
        "network_calls": network_passes(session.sampler, session.denoiser),
        "labels": None if session.num_classes is None else f"image i has label i mod {session.num_classes}",
        "num_samples": cfg.num_samples,
        "seed": cfg.seed,
        **settings(session),
    }


def one_line(figures: dict[str, float], p: dict[str, Any]) -> str:
    """The protocol as a line to paste beside the first figure."""
    reference, features, sampler, checkpoint = p["reference"], p["features"], p["sampler"], p["checkpoint"]
    extra = " ".join(f"{k}={v}" for k, v in sampler.items() if k not in ("_target_", "num_steps"))
    first = next(iter(figures.items()))
    averaged = p["weights"] if p["weights"] == "raw" else f"ema {p['weights']}"
    named = ("guidance_interval", "guidance_rescale", "dynamic_threshold")
    options = [f"{key}={p[key]}" for key in named if p.get(key)]  # files of older versions have none of these
    options += [p["precision"]] if p.get("precision", "32-true") != "32-true" else []
    last_seed = p["seed"] + p["num_samples"] - 1
    return " | ".join(
        [
            f"{first[0]}-{p['num_samples']} {first[1]:.4f}",
            f"{reference['set']} train {reference['count']} no-flip sha256 {reference['sha256'][:8]}",
            f"torch-fidelity {p['versions']['torch-fidelity']} {features['name']} sha256 {features['sha256'][:8]}",
            p["quantisation"],
            f"{checkpoint['run']} sha256 {checkpoint['sha256'][:8]} {averaged} @{p['step']}"
            f" ({p['images_seen'] / 1e6:.3g}M images)",
            f"{sampler['_target_'].rpartition('.')[2]} {sampler['num_steps']} {extra} T={p['T']}"
            f" NFE {p['network_calls']}",
            " ".join([f"cond w={p['guidance']}" if p["labels"] else "uncond", *options]),
            f"seeds {p['seed']}-{last_seed}",
        ]
    )
