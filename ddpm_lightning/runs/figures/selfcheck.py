"""mode=selfcheck: distances whose order is known before they are measured."""

from pathlib import Path

import torch
from omegaconf import DictConfig

from ddpm_lightning.diffusion.noise import PerImageNoise
from ddpm_lightning.evaluation.features import Extracted
from ddpm_lightning.evaluation.fidelity import Statistics, frechet_distance
from ddpm_lightning.images import to_uint8
from ddpm_lightning.runs.figures.extraction import VERSIONS, data_of, extracted, features_of
from ddpm_lightning.runs.figures.outcome import Outcome, publish
from ddpm_lightning.runs.figures.protocol import again, extractor_words, short, side_words
from ddpm_lightning.runs.figures.scores import held_out_rows
from ddpm_lightning.runs.figures.sides import InMemory, split_of
from ddpm_lightning.runs.refusal import Failure, Refusal
from ddpm_lightning.runs.sampling import Session, check_device, check_integer, check_numbers, tag

LEAST = 20
ZERO = 1e-6  # of the distance between the halves and between noise, for what should be none


def selfcheck(cfg: DictConfig, session: Session | None) -> float:
    """Distances of the training split to itself, between its halves, to the held-out split, and to itself with noise.

    Returns that between the halves. Raises Failure if the first is not zero, or more noise is not farther away.
    """
    check_integer(cfg, "num_images", LEAST)
    sizes = check_numbers(cfg, "noise", 0)
    if any(a >= b for a, b in zip([0, *sizes], sizes, strict=False)):
        raise Refusal(f"noise={sizes}: must be a list of numbers above 0 that grow")
    data = data_of(cfg, session and session.loaded)
    train, held_out = split_of(data, "train"), split_of(data, "val")
    features = features_of(cfg, lambda: data, train.shape)
    device = check_device(cfg)
    features.to(device)
    drawn = torch.randperm(len(train.indices), generator=torch.Generator().manual_seed(0)).tolist()
    train.indices = drawn[: cfg.num_images]

    def rows(side: InMemory) -> Extracted:
        return extracted(side, features, cfg)[0]

    real, new = rows(train).features, held_out_rows(held_out, features, cfg)
    known, half = Statistics.of(real), len(real) // 2
    table: list[tuple[str, float]] = [
        ("train, train", frechet_distance(known, known)),
        ("two halves", frechet_distance(real[:half], real[half:])),
        ("train, held out", frechet_distance(new.features, known)),
    ]
    images = train.images(train.indices)
    noise = PerImageNoise(range(len(images)), "cpu").randn(train.shape)
    for size in sizes:
        noisy = to_uint8(images / 127.5 - 1 + size * noise)
        name = f"{train.described['set']} {cfg.num_images} noise {size}"
        side = InMemory(name, noisy, None, f"{train.described['sha256']} + {size}", "array")
        table.append((f"noise {size}", frechet_distance(rows(side).features, known)))

    described = {"set": train.described, "held_out": held_out.described, "count": len(real), "noise": sizes}
    described |= {"features": features.protocol, "versions": VERSIONS, "device": device.type}
    words = f"{side_words(train.described)} | {side_words(held_out.described)} | {extractor_words(features.protocol)}"
    words += f" | selfcheck of {short(len(real))} images | torch-fidelity {VERSIONS['torch-fidelity']}"
    words += f" | torch {VERSIONS['torch']} {device.type}"
    outcome = Outcome({"halves": table[1][1]}, words, described, again("evaluate.py", {"num_images": cfg.num_images}))
    outcome.tables["distances"] = [("compared", "fid"), *table]
    found = publish(outcome, Path("runs/selfcheck") / f"{tag(described)}.json")
    noisy_distances = [distance for name, distance in table if name.startswith("noise")]
    if table[0][1] > ZERO * max(table[1][1], 1):
        raise Failure(f"selfcheck: the distance of the training split to itself must be 0, is {table[0][1]:.3g}")
    if any(a >= b for a, b in zip(noisy_distances, noisy_distances[1:], strict=False)):
        raise Failure("selfcheck: more noise must be farther away; the table above says where it is not")
    return found
