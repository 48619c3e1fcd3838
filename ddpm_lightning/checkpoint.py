"""Checkpoint files: written whole or not at all, and read without running code."""

import hashlib
import importlib
import json
import os
import warnings
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from safetensors import safe_open
from safetensors.torch import save_file

from ddpm_lightning.data.base import ImageDataModule
from ddpm_lightning.diffusion.denoiser import Denoiser
from ddpm_lightning.diffusion.parameterization import Parameterization
from ddpm_lightning.diffusion.schedules.base import NoiseSchedule
from ddpm_lightning.nn.unet import UNet

PACKAGE = __name__.partition(".")[0]
EXPORTED = ".safetensors"
PREFIX = "denoiser."  # of its weights among the module's
EMA, RAW = "ema", "raw"  # the names of weights; further averages go by their decay


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, flushes to the disk, and renames: a kill at any moment leaves the old file whole.

    (Lightning's own writes to the folder for temporary files, and copies if that is another file system.)
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            with open(part, "wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        except BaseException:  # such as a full disk
            part.unlink(missing_ok=True)
            raise


class Loaded(NamedTuple):
    """A denoiser in evaluation mode, the configuration it was trained with, and where its weights come from.

    ``weights`` is the decay of their average, or "raw".
    """

    denoiser: Denoiser
    config: dict[str, Any]
    path: Path
    step: int
    weights: str
    images_seen: int
    sha256: str
    class_names: list[str] | None

    @property
    def num_classes(self) -> int | None:
        return self.config["model"]["num_classes"]

    @property
    def label_drop(self) -> float | None:
        """How often it was trained without its labels."""
        return self.config["module"].get("label_drop")


def best_device() -> str:
    """The kind of accelerator that is here, or "cpu"."""
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def find_checkpoint(path: str | Path) -> Path:
    """A file as it is; of a run folder the last checkpoint. Raises FileNotFoundError."""
    path = Path(path)
    for candidate in (path, path / "last.ckpt", path / "checkpoints" / "last.ckpt"):
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(
        f"ckpt must be a checkpoint file, or a run folder that has checkpoints/last.ckpt, got {path}"
    )


def read_checkpoint(path: Path, file: BinaryIO | None = None) -> dict[str, Any]:
    """The file's content on the CPU; of ``file``, if it is open already.

    Raises ValueError for anything but a checkpoint of this project's runs. Files that would run code when unpickled are
    among those refused, without exception.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # of the unpickler, about files that are refused below
            source = path if file is None else file
            if path.suffix == EXPORTED:
                content = _read_exported(path)
            else:
                content = torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken file makes the unpickler raise almost anything
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"ckpt must be a checkpoint that this project wrote, got {path}, which can't be read safely ({reason})"
        ) from error
    parts = ("data", "model", "schedule", "parameterization", "module", "trainer", "callbacks")
    found: dict[str, Any] = content if isinstance(content, dict) else {}
    config = found.get("config")
    config = config if isinstance(config, dict) else {}
    lacks = [key for key in ("state_dict", "config", "global_step", "images_seen") if key not in found]
    lacks += [f"config.{part}" for part in parts if not isinstance(config.get(part), dict)]
    if lacks:
        raise ValueError(f"ckpt must be a checkpoint that this project wrote, got {path}, which lacks {lacks[0]}")
    return content


def export(path: str | Path, target: Path, weights: str = EMA) -> Path:
    """Write one set of weights alone, with all that ``load_denoiser`` needs, as a safetensors file.

    A fraction of the checkpoint's size, for sharing and sampling; training can't go on from it.
    """
    file = find_checkpoint(path)
    loaded, checkpoint = load_denoiser(file, weights), read_checkpoint(file)
    kept = {key: checkpoint[key] for key in ("config", "global_step", "images_seen")}
    described = {**kept, "class_names": loaded.class_names, "weights": loaded.weights}
    tensors = {name: tensor.contiguous() for name, tensor in loaded.denoiser.state_dict().items()}
    part = target.with_name(f".{target.name}.part")
    save_file(tensors, part, metadata={"ddpm_lightning": json.dumps(described)})
    os.replace(part, target)
    return target


def _read_exported(path: Path) -> dict[str, Any]:
    """An exported file in the form of a checkpoint with those weights alone."""
    with safe_open(path, framework="pt") as file:
        described = json.loads(file.metadata()["ddpm_lightning"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
    weights = described.pop("weights")
    if weights == RAW:
        return {**described, "state_dict": {f"{PREFIX}{name}": tensor for name, tensor in tensors.items()}}
    return {**described, "state_dict": {}, "ema": {"averages": {weights: tensors}}}


def build_from_file(node: Any, base: type) -> Any:
    """The object of a class below ``base`` that a file's ``{"_target_": ..., argument: value}`` stands for.

    Not Hydra's instantiate, which would call whatever a foreign file names.
    """
    module_name, _, class_name = str(node.get("_target_")).rpartition(".")
    if module_name.split(".")[0] != PACKAGE:
        raise ValueError(f"ckpt names {node.get('_target_')}, but may name classes of {PACKAGE} alone")
    found = getattr(importlib.import_module(module_name), class_name, None)
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ValueError(f"ckpt names {node['_target_']}, which is not the kind of class that belongs there")
    return found(**{key: value for key, value in node.items() if key != "_target_"})


def load_denoiser(path: str | Path, weights: str = "ema", device: torch.device | str = "cpu") -> Loaded:
    """The denoiser of a checkpoint file or run folder.

    ``weights``: "ema", the average that validated; "raw", the optimizer's own; or an average's decay, such as "0.999".
    """
    file = find_checkpoint(path)
    with open(file, "rb") as opened:  # once: a run that goes on may put another file in its place
        sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
        opened.seek(0)
        checkpoint = read_checkpoint(file, opened)
    config = checkpoint["config"]
    averages: dict[str, Any] = checkpoint.get("ema", {}).get("averages", {})
    state = checkpoint["state_dict"]
    if weights == EMA and averages:
        weights = next(iter(averages))
    if weights not in ([RAW] if state else []) and weights not in averages:
        allowed = ", ".join([*([RAW] if state else []), *([EMA] if averages else []), *averages])
        raise ValueError(f"weights must be one of {allowed}, those of {file}, got {weights}")
    denoiser = Denoiser(
        build_from_file(config["model"], UNet),
        build_from_file(config["schedule"], NoiseSchedule),
        build_from_file(config["parameterization"], Parameterization),
        config["module"]["denoiser"]["image_shape"],
    )
    own = {key.removeprefix(PREFIX): value for key, value in state.items() if key.startswith(PREFIX)}
    denoiser.load_state_dict(own if weights == RAW else averages[weights])
    denoiser = denoiser.eval().requires_grad_(False).to(device)
    step, images_seen = checkpoint["global_step"], checkpoint["images_seen"]
    names = checkpoint.get("class_names")
    return Loaded(denoiser, config, file, step, weights, images_seen, sha256, names)


def load_data(config: dict[str, Any], root: str | None = None) -> ImageDataModule:
    """The data module a checkpoint was trained with, its files under another ``root`` if given.

    Raises ValueError if its own root is not here: a foreign file must not decide which folders are made.
    """
    data: ImageDataModule = build_from_file(
        {**config["data"], **({} if root is None else {"root": root})}, ImageDataModule
    )
    if root is None and data.needs_root and not data.root.is_dir():
        raise ValueError(f"root must be given: the checkpoint was trained on data in {data.root}, which is not here")
    return data
