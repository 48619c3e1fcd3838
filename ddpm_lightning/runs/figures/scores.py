"""Features of two sets of images -> figures."""

import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from omegaconf import DictConfig

from ddpm_lightning.evaluation.features import Extracted, Features
from ddpm_lightning.evaluation.fidelity import (
    frechet_distance,
    inception_score,
    kernel_distance,
    memorisation_ratio,
    precision_recall,
)
from ddpm_lightning.runs.figures.extraction import extracted
from ddpm_lightning.runs.figures.reference import Real
from ddpm_lightning.runs.figures.sides import Side
from ddpm_lightning.runs.refusal import Refusal


def score(metrics: Sequence[str], fake: Extracted, real: Real, held_out: Extracted | None = None) -> dict[str, float]:
    """Figures of generated features against real ones, in the order of ``fidelity.METRICS``.

    ``held_out`` is for memorisation alone; statistics are enough for the Frechet distance alone.
    """
    figures: dict[str, float] = {}
    if "fid" in metrics:
        figures["fid"] = frechet_distance(fake.features, real.statistics)
    if "is" in metrics and fake.logits is not None:
        figures["is"] = inception_score(fake.logits)
    if real.rows is None:
        return figures
    if "kid" in metrics:
        figures["kid"], figures["kid_std"] = kernel_distance(fake.features, real.rows.features)
    if "prc" in metrics:
        figures["precision"], figures["recall"] = precision_recall(fake.features, real.rows.features)
    if "memorisation" in metrics and held_out is not None:
        figures["memorisation"] = memorisation_ratio(fake.features, real.rows.features, held_out.features)
    return figures


def accuracy(rows: Extracted, labels: Sequence[int] | None) -> float | None:
    """How often a classifier finds the label that an image has, or was made for; None without the one or the other."""
    if rows.predicted is None or labels is None:
        return None
    return (rows.predicted == torch.tensor(labels)).double().mean().item()


def held_out_rows(side: Side, features: Features, cfg: DictConfig) -> Extracted:
    """Features of the held-out images, whose accuracy a classifier is then known by."""
    rows, _ = extracted(side, features, cfg)
    right = accuracy(rows, side.labels)
    if right is not None:
        features.protocol["accuracy"] = right
    return rows


def combined(figures: Sequence[dict[str, float]]) -> tuple[dict[str, float], dict[str, dict[str, Any]]]:
    """Means over several sets of samples; and of each that varied its deviation, the least value and all of them."""
    names = list(figures[0])
    if len(figures) == 1:
        return figures[0], {}
    values = {name: [one[name] for one in figures] for name in names}
    varied = [name for name in names if len(set(values[name])) > 1 and name != "kid_std"]
    spread = {n: {"std": statistics.stdev(v), "min": min(v), "values": v} for n, v in values.items() if n in varied}
    return {name: statistics.fmean(v) for name, v in values.items()}, spread


def by_class(
    fake: Extracted, made_for: Sequence[int], real: Extracted, labels: Sequence[int], names: Sequence[str] | None
) -> list[tuple[Any, ...]]:
    """A table: of each class the Frechet distance between its generated and its real images, and the accuracy."""
    made, are = torch.tensor(made_for), torch.tensor(labels)
    table: list[tuple[Any, ...]] = [("class", "generated", "real", "fid", "accuracy")]
    for label, (name, *counts) in by_class_counts(made_for, labels, names).items():
        chosen, wanted = made == label, are == label
        distance = frechet_distance(fake.features[chosen], real.features[wanted])
        right = None if fake.predicted is None else (fake.predicted[chosen] == label).double().mean().item()
        table.append((name, *counts, distance, right))
    return table


def by_class_counts(
    made_for: Sequence[int] | None, labels: Sequence[int] | None, names: Sequence[str] | None
) -> dict[int, tuple[str, int, int]]:
    """By label the class's name, and how many images of it are generated and real. Raises Refusal for too few."""
    if made_for is None or labels is None:
        raise Refusal("classwise=true: needs labels on either side, of the same classes")
    made, are = Counter(made_for), Counter(labels)
    counts = {
        label: (names[label] if names else str(label), made[label], are[label]) for label in sorted({*made, *are})
    }
    for name, generated, real in counts.values():
        if min(generated, real) < 2:
            there = f"of class {name} there are {generated} generated and {real} real ones"
            raise Refusal(f"classwise=true: needs two images of each class on either side, {there}")
    return counts
