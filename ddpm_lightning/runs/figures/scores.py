"""Features of two sets of images -> figures."""

import statistics
from collections.abc import Sequence
from typing import Any

import torch

from ddpm_lightning.evaluation.features import Extracted
from ddpm_lightning.evaluation.fidelity import (
    Statistics,
    frechet_distance,
    inception_score,
    kernel_distance,
    memorisation_ratio,
    precision_recall,
)
from ddpm_lightning.runs.refusal import Refusal


def score(
    metrics: Sequence[str], fake: Extracted, real: Extracted | Statistics, held_out: Extracted | None = None
) -> dict[str, float]:
    """Figures of generated features against real ones, in the order of ``fidelity.METRICS``.

    ``held_out`` is for memorisation alone; statistics are enough for the Frechet distance alone.
    """
    if "is" in metrics and fake.logits is None:
        raise Refusal("metrics=[is]: needs features with classes: inception, classifier or conv_classifier")
    figures: dict[str, float] = {}
    if "fid" in metrics:
        figures["fid"] = frechet_distance(fake.features, real if isinstance(real, Statistics) else real.features)
    if "is" in metrics and fake.logits is not None:
        figures["is"] = inception_score(fake.logits)
    if isinstance(real, Statistics):
        return figures
    if "kid" in metrics:
        figures["kid"], figures["kid_std"] = kernel_distance(fake.features, real.features)
    if "prc" in metrics:
        figures["precision"], figures["recall"] = precision_recall(fake.features, real.features)
    if "memorisation" in metrics and held_out is not None:
        figures["memorisation"] = memorisation_ratio(fake.features, real.features, held_out.features)
    return figures


def accuracy(rows: Extracted, labels: Sequence[int] | None) -> float | None:
    """How often a classifier finds the label that an image has, or was made for; None without the one or the other."""
    if rows.predicted is None or labels is None:
        return None
    return (rows.predicted == torch.tensor(labels)).double().mean().item()


def combined(figures: Sequence[dict[str, float]]) -> tuple[dict[str, float], dict[str, dict[str, Any]]]:
    """Means over several sets of samples; and of each that varied its deviation, the least value and all of them."""
    names = list(figures[0])
    if len(figures) == 1:
        return figures[0], {}
    values = {name: [one[name] for one in figures] for name in names}
    spread = {n: {"std": statistics.stdev(v), "min": min(v), "values": v} for n, v in values.items() if len({*v}) > 1}
    return {name: statistics.fmean(v) for name, v in values.items()}, spread


def by_class(
    fake: Extracted, made_for: Sequence[int], real: Extracted, labels: Sequence[int], names: Sequence[str] | None
) -> list[tuple[Any, ...]]:
    """A table: of each class the Frechet distance between its generated and its real images, and the accuracy."""
    made, are = torch.tensor(made_for), torch.tensor(labels)
    table: list[tuple[Any, ...]] = [("class", "generated", "real", "fid", "accuracy")]
    for label in sorted({*made_for, *labels}):
        chosen, wanted = made == label, are == label
        counts = int(chosen.sum()), int(wanted.sum())
        name = names[label] if names else str(label)
        if min(counts) < 2:
            raise Refusal(
                f"classwise=true: needs two images of each class on either side, of class {name} there are"
                f" {counts[0]} generated and {counts[1]} real ones"
            )
        distance = frechet_distance(fake.features[chosen], real.features[wanted])
        right = None if fake.predicted is None else (fake.predicted[chosen] == label).double().mean().item()
        table.append((name, *counts, distance, right))
    return table
