"""Sides -> features, on one or several devices, by way of a store that outlives interruptions."""

from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from tqdm import tqdm

from ddpm_lightning.checkpoint import Loaded, load_data
from ddpm_lightning.data.base import ImageDataModule
from ddpm_lightning.evaluation.features import Extracted, Features, Inception, Pixels
from ddpm_lightning.evaluation.store import FeatureStore, fill, user_cache
from ddpm_lightning.evaluation.suited import suited
from ddpm_lightning.runs.build import MISTAKES, build, explain
from ddpm_lightning.runs.figures.sides import Samples, Side
from ddpm_lightning.runs.refusal import Refusal
from ddpm_lightning.runs.sampling import Session, block_of, check_device, progress, run_folder
from ddpm_lightning.runs.sharing import share_out

VERSIONS = {name: version(name) for name in ("torch-fidelity", "torch", "scikit-learn", "ddpm-lightning")}


def data_of(cfg: DictConfig, loaded: Loaded | None) -> ImageDataModule:
    """The data set that was named, or the checkpoint's, with its files there."""
    try:
        if "_target_" in cfg.data:
            data: ImageDataModule = build(cfg, "data")
        elif loaded is not None:
            data = load_data(loaded.config, cfg.data.root)
        else:
            raise Refusal("data: must be given, as data=..., where there is no ckpt=...")
        data.prepare_data()
        for split in ("train", "val"):
            data.split(split)
    except MISTAKES as mistake:
        raise Refusal(explain("data", mistake)) from mistake
    return data


def features_of(cfg: DictConfig, data: Callable[[], ImageDataModule], shape: tuple[int, ...]) -> Features:
    """The extractor that was asked for, or that suits images of this shape, with what it has to learn."""
    try:
        features: Features = build(cfg, "features") if cfg.get("features") else suited(shape)
        if not learns(features):
            features.fit(torch.zeros(1, *shape, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64))
        else:
            if data().image_shape != shape:
                raise Refusal(f"data: must hold images of {shape}, as what is scored, for features learned from it")
            features.fit(*data().split("train"))
    except MISTAKES as mistake:
        raise Refusal(explain("features", mistake)) from mistake
    return features


def learns(features: Features) -> bool:
    """Whether it is a classifier of the data set's classes."""
    return not isinstance(features, Inception | Pixels)


def cache_of(cfg: DictConfig) -> Path:
    return Path(str(cfg.cache)).expanduser() if cfg.cache else user_cache()


def store_of(side: Side, features: Features, cfg: DictConfig, device: torch.device) -> FeatureStore:
    """Where the features of a side's images are, or will be: of samples with their run, of others in the cache."""
    protocol = {name: value for name, value in features.protocol.items() if name != "accuracy"}
    images = {name: value for name, value in side.described.items() if "draw" not in name}  # rows go by index
    key: dict[str, Any] = {"images": images, "features": protocol, "versions": VERSIONS, "device": device.type}
    if device.type != "cpu":  # where other batches give other bits
        key["batch_size"] = cfg.batch_size
    folder = cache_of(cfg)
    if isinstance(side, Samples):
        folder = run_folder(side.session.loaded.path) / "evaluation"
    try:
        return FeatureStore(folder / "features", key)
    except OSError as error:
        raise Refusal(f"cache={folder}: must be a folder that can be written ({error})") from error


def extracted(side: Side, features: Features, cfg: DictConfig) -> tuple[Extracted, float]:
    """Rows of features of a side's images, in their order, and the seconds that they took when they were made."""
    device = side.session.device if isinstance(side, Samples) else check_device(cfg)
    store = store_of(side, features, cfg, device)
    if isinstance(side, Samples):
        missing = sorted({*store.missing(side.indices), *side.unwritten()})
        if cfg.devices > 1 and missing:
            share_out(_share, side.session, missing, side.folder or Path())
            store.refresh()
        elif missing:
            _draw(side, features, store, missing)
    else:
        missing = store.missing(side.indices)
        with tqdm(total=len(missing), desc="Features", unit="image", leave=False, disable=None) as bar:
            fill(store, features, missing, side.images, cfg.batch_size, block_of(device), bar.update)
    return store.read(side.indices), store.seconds(side.indices)


def _draw(side: Samples, features: Features, store: FeatureStore, seeds: Sequence[int], quiet: bool = False) -> None:
    session = side.session
    with progress(len(seeds), session.sampler.num_steps, quiet) as bar:
        side.on_move = bar.update
        fill(store, features, seeds, side.images, session.cfg.batch_size, block_of(session.device))


def _share(session: Session, seeds: Sequence[int], folder: Path, rank: int) -> None:
    """What one of several processes does."""
    cfg = session.cfg
    features = features_of(cfg, lambda: data_of(cfg, session.loaded), session.shape)
    features.to(session.device)
    side = Samples(session, seeds, folder if cfg.keep_samples else None)
    _draw(side, features, store_of(side, features, cfg, session.device), seeds, quiet=rank > 0)
