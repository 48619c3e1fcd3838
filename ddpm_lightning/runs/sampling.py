"""What all commands that sample share: a checkpoint, a sampler, what steers them, and where the pictures go."""

import csv
import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from tqdm import tqdm

from ddpm_lightning.checkpoint import Loaded, best_device, load_denoiser
from ddpm_lightning.diffusion.guidance import DynamicThreshold, GuidedDenoiser, X0Estimator, steered
from ddpm_lightning.diffusion.parameterization import Estimate
from ddpm_lightning.diffusion.samplers.base import Sampler
from ddpm_lightning.generation import BLOCK, generate
from ddpm_lightning.images import read_image, to_uint8
from ddpm_lightning.runs.build import MISTAKES, build
from ddpm_lightning.runs.check import check_sampler
from ddpm_lightning.runs.command import write_json, write_text
from ddpm_lightning.runs.refusal import CONF, Refusal

LABELS = 2  # first part of the keys of random labels; see data/resident.py for the others
MOST = 2**31
STEERING = ("guidance", "guidance_interval", "guidance_rescale", "dynamic_threshold")
PRECISIONS = ("32-true", "bf16-mixed")
DEVICES = ("cpu", "cuda", "mps")
BAR = "{l_bar}{bar}| [{elapsed}<{remaining}, {rate_fmt}]"


class Session(NamedTuple):
    """A denoiser as it was asked for, and with what it is sampled."""

    cfg: DictConfig
    loaded: Loaded
    sampler: Sampler
    denoiser: X0Estimator
    device: torch.device

    @property
    def num_classes(self) -> int | None:
        return self.loaded.num_classes

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W) of the images."""
        return self.loaded.denoiser.image_shape

    def labels(self, seeds: Sequence[int]) -> list[int] | None:
        """A label for each seed, as ``label`` asks: it depends on the seed alone."""
        given = plain(self.cfg.label)
        if self.num_classes is None:
            if given != "all":
                raise Refusal(f"label={given}: must be all, as the checkpoint was trained without labels")
            return None
        n = self.num_classes
        if given == "random":
            return [int(np.random.default_rng((LABELS, seed)).integers(n)) for seed in seeds]
        chosen = list(range(n)) if given == "all" else given if isinstance(given, list) else [given]
        if not chosen or any(not is_integer(c) or not 0 <= c < n for c in chosen):
            raise Refusal(f"label={given}: must be all, random, an integer in [0, {n - 1}], or a list of such")
        return [chosen[seed % len(chosen)] for seed in seeds]

    def captions(self, labels: Sequence[int] | None) -> list[str] | None:
        """The names of the labels."""
        names = self.loaded.class_names
        return None if labels is None else [names[label] if names else str(label) for label in labels]


def open_session(cfg: DictConfig) -> Session:
    """Load what the command names, and find it to fit together. Raises Refusal."""
    device = check_device(cfg)
    try:
        loaded = load_denoiser(str(cfg.ckpt), str(cfg.weights), device)
    except (*MISTAKES, KeyError, RuntimeError, ImportError) as error:
        known = str(error).startswith(("ckpt", "weights"))
        raise Refusal(str(error) if known else f"ckpt={cfg.ckpt} device={device}: {error}") from error
    sampler: Sampler = build(cfg, "sampler")
    check_sampler(sampler, loaded.denoiser)
    check_integer(cfg, "batch_size", 1)
    check_integer(cfg, "seed", 0, 2**62)
    denoiser = steer(cfg, loaded, cfg.guidance)
    return Session(cfg, loaded, sampler, denoiser, device)


def check_device(cfg: DictConfig) -> torch.device:
    """The device that is asked for, or the best one. Raises Refusal for one that is none, and for such a precision."""
    device = best_device() if cfg.device == "auto" else str(cfg.device)
    if device.partition(":")[0] not in DEVICES:
        raise Refusal(f"device={device}: must be auto, or one of {', '.join(DEVICES)}")
    if cfg.precision not in PRECISIONS:
        raise Refusal(f"precision={cfg.precision}: must be one of {', '.join(PRECISIONS)}")
    return torch.device(device)


def steer(cfg: DictConfig, loaded: Loaded, guidance: float) -> X0Estimator:
    """The denoiser with guidance of this strength, and all else that was asked for."""
    interval, threshold = plain(cfg.guidance_interval), cfg.dynamic_threshold
    try:
        return steered(
            loaded.denoiser,
            loaded.num_classes,
            guidance,
            interval,
            cfg.guidance_rescale,
            threshold,
            loaded.label_drop,
        )
    except (ValueError, TypeError) as mistake:
        text = str(mistake)
        for name, key in (("interval", STEERING[1]), ("rescale", STEERING[2]), ("quantile", STEERING[3])):
            text = key + text.removeprefix(name) if text.startswith(name) else text
        raise Refusal(text) from mistake


@contextmanager
def sampling_context(session: Session) -> Iterator[None]:
    """No gradients, and the network in the precision that was asked for; the sampler's state stays in float32."""
    lower = session.cfg.precision == "bf16-mixed"
    with torch.no_grad(), torch.autocast(session.device.type, torch.bfloat16, enabled=lower):
        yield


def sampler_names() -> list[str]:
    """Those of the configuration."""
    return sorted(path.stem for path in (CONF / "sampler").glob("*.yaml"))


def named_sampler(name: str, num_steps: int) -> Sampler:
    """A sampler of the configuration, with its defaults but for the number of steps."""
    node = OmegaConf.load(CONF / "sampler" / f"{name}.yaml")
    return build(OmegaConf.create({"sampler": {**node, "num_steps": num_steps}}), "sampler")


def check_integer(cfg: DictConfig, key: str, least: int, most: int = MOST) -> None:
    """Refuse anything but an integer in [least, most)."""
    if not (is_integer(cfg[key]) and least <= cfg[key] < most):
        raise Refusal(f"{key}={cfg[key]}: must be an integer in [{least}, {most})")


def is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def plain(value: Any) -> Any:
    """A list of the configuration as a list of Python's; anything else as it is."""
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def generate_uint8(
    session: Session, seeds: Sequence[int], labels: Sequence[int] | None, quiet: bool = False
) -> Iterator[Tensor]:
    """Batches (at most batch_size, C, H, W) uint8 on the CPU, with a progress bar in images per second."""
    with progress(len(seeds), session.sampler.num_steps, quiet) as bar:
        batches = generate(
            session.denoiser,
            session.sampler,
            session.shape,
            seeds,
            labels,
            session.cfg.batch_size,
            session.device,
            bar.update,
            block_of(session.device),
        )
        for batch in batches:
            yield to_uint8(batch).cpu()


def progress(num_images: int, moves: int, quiet: bool = False, desc: str = "Sampling") -> tqdm:
    """A bar in images per second, that is updated by how many images have made a move; none where no one looks."""
    total, scale = num_images * moves, 1 / moves
    return tqdm(total=total, desc=desc, unit="image", unit_scale=scale, bar_format=BAR, disable=quiet or None)


def block_of(device: torch.device) -> int:
    """What batches are filled up to, for the same bits; there is no such size for a GPU."""
    return BLOCK if device.type == "cpu" else 1


def write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Write a table whole or not at all."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    write_text(path, text.getvalue())


def network_passes(sampler: Sampler, denoiser: X0Estimator) -> int:
    """How often the network sees an image on its way: found by sending one pixel through, past a network of nothing."""
    passes = [0]

    class Nothing:
        schedule = denoiser.schedule

        def __call__(self, x_t: Tensor, t: Any, label: Any = None) -> Tensor:
            passes[0] += len(x_t)
            return torch.zeros_like(x_t)

        def estimate(self, x_t: Tensor, t: Any, label: Any = None) -> Estimate:
            return Estimate(self(x_t, t), torch.zeros_like(x_t))

    guided = denoiser.denoiser if isinstance(denoiser, DynamicThreshold) else denoiser
    counted: Any = Nothing()
    if isinstance(guided, GuidedDenoiser):
        counted = GuidedDenoiser(counted, guided.w, guided.null_label, guided.interval)
    sampler(counted, torch.zeros(1, 1, 1, 1), torch.zeros(1, dtype=torch.int64))
    return passes[0]


def check_numbers(cfg: DictConfig, key: str, least: float) -> list[Any]:
    """A list of numbers that is not empty, or Refusal."""
    given = plain(cfg[key])
    fine = isinstance(given, list) and given
    if not fine or any(not isinstance(x, int | float) or isinstance(x, bool) or x < least for x in given):
        raise Refusal(f"{key}={given}: must be a list of numbers of at least {least:g}")
    return given


def read_images(key: str, paths: Sequence[str], shape: Sequence[int]) -> Tensor:
    """Picture files as images (N, C, H, W) in [-1, 1]. Raises Refusal, with the key that named them."""
    try:
        return torch.stack([read_image(Path(str(path)).expanduser(), shape) for path in paths])
    except ValueError as mistake:
        raise Refusal(f"{key}: {mistake}") from mistake


def run_folder(checkpoint: Path) -> Path:
    """The folder of the run that a checkpoint file belongs to."""
    return checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint.parent


def settings(session: Session) -> dict[str, Any]:
    """All that shapes the image of a seed, plain values."""
    cfg, loaded = session.cfg, session.loaded
    return {
        **{key: plain(cfg[key]) for key in (*STEERING, "precision")},
        "sampler": OmegaConf.to_container(cfg.sampler, resolve=True),
        "weights": loaded.weights,
        "checkpoint": {"run": loaded.config.get("name"), "file": loaded.path.name, "sha256": loaded.sha256},
        "step": loaded.step,
    }


def tag(described: dict[str, Any], *parts: object) -> str:
    """A name for what is described, short and unlike that of anything else: ``ddim-50-1f3a9c``."""
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
    if "sampler" not in described:
        return "-".join(map(str, (*parts, digest[:6])))
    name = described["sampler"]["_target_"].rpartition(".")[2].removesuffix("Sampler").lower()
    return "-".join(map(str, (name, described["sampler"]["num_steps"], *parts, digest[:6])))


def output_folder(session: Session, described: dict[str, Any]) -> Path:
    """Where the pictures go, made, with the settings beside them.

    Raises Refusal if it can't be written, or holds pictures of other settings.
    """
    cfg = session.cfg
    default = run_folder(session.loaded.path) / "samples" / f"{cfg.mode}-{tag(described)}"
    folder = default if cfg.output_dir is None else Path(str(cfg.output_dir)).expanduser()
    record = folder / "settings.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if record.exists() and json.loads(record.read_text()) != json.loads(json.dumps(described)):
            raise Refusal(f"output_dir={folder}: must be another one, as it holds pictures of other settings")
        write_json(record, described)
    except (OSError, ValueError) as error:
        raise Refusal(f"output_dir={folder}: must be a folder that can be written ({error})") from error
    return folder
