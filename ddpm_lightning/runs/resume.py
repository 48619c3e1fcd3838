"""Whether a run starts afresh or goes on, and from where."""

from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig

from ddpm_lightning.checkpoint import EXPORTED, find_checkpoint, read_checkpoint
from ddpm_lightning.runs.precision import AUTO
from ddpm_lightning.runs.refusal import Refusal

# What shapes the weights must be the same in a run and in the one it goes on from: these groups and keys ...
SHAPING = (
    *("seed", "data", "model", "schedule", "parameterization", "distance", "weighting", "timesteps", "optimizer"),
    *("lr_schedule", "objective", "module.label_drop", "module.offset_noise", "module.input_perturbation"),
    *("callbacks.ema", "trainer.precision", "trainer.devices", "trainer.num_nodes"),
    *("trainer.accumulate_grad_batches", "trainer.gradient_clip_val", "trainer.gradient_clip_algorithm"),
)
# ... but for where the data are, and how long the run is.
FREE = (
    "data.root",
    "data.cache",
    "data.archive",
    "data.device",
    "data.eval_batch_size",
    "objective.perceptual.weights",
    "model.checkpointing",
    "model.channels_last",
)


class Start(NamedTuple):
    """The checkpoint a run goes on from, its step, and its precision; None, 0 and None for a fresh start."""

    checkpoint: Path | None
    step: int
    precision: str | None = None


def find_start(cfg: DictConfig, config: dict[str, Any], folder: Path) -> Start:
    """Where the run of this configuration starts. Raises Refusal rather than mix or overwrite runs."""
    last = folder / "checkpoints" / "last.ckpt"
    if cfg.resume == "never":
        if (folder / "config.yaml").exists() or list(folder.glob("checkpoints/*.ckpt")):
            raise Refusal(f"resume=never: {folder} holds a run; allowed: another name=, resume=auto, or removing it")
        return Start(None, 0)
    if cfg.resume == "auto" and not last.exists():
        return Start(None, 0)
    try:
        path = last if cfg.resume == "auto" else find_checkpoint(cfg.resume)
        if path.suffix == EXPORTED:
            raise ValueError(f"{path} holds exported weights alone")
        checkpoint = read_checkpoint(path)
    except (FileNotFoundError, ValueError) as error:
        raise Refusal(f"resume={cfg.resume}: must be auto, never, or a checkpoint or run folder ({error})") from error
    saved, now = _flat(checkpoint["config"]), _flat(config)
    if now["trainer.precision"] == AUTO:  # in a run that goes on, the one it has
        now["trainer.precision"] = saved["trainer.precision"]
    _check_same(saved, now, path)
    return Start(path, checkpoint["global_step"], saved["trainer.precision"])


def _check_same(saved: dict[str, Any], config: dict[str, Any], path: Path) -> None:
    # objects that one of the two has and the other has not; of groups that the version knew which saved them
    groups = {key.partition(".")[0] for key in saved}
    for key in sorted(saved.keys() ^ config.keys()):
        if key.endswith("._target_") and _below(key, SHAPING) and key.partition(".")[0] in groups:
            name, there = key.removesuffix("._target_"), "not there" if key in config else saved[key]
            raise Refusal(f"{name}: must be {there}, as when {path} was trained; or give the new run another name=")
    # the plain keys first, as others take their values from them; keys that an older version lacked don't count
    for key in sorted(saved.keys() & config.keys(), key=lambda key: (key.count("."), key)):
        if _below(key, SHAPING) and not _below(key, FREE) and saved[key] != config[key]:
            raise Refusal(
                f"{key}={config[key]}: must be {saved[key]}, with which {path} was trained;"
                " or give the new run another name="
            )


def _below(key: str, nodes: tuple[str, ...]) -> bool:
    return any(key == node or key.startswith(f"{node}.") for node in nodes)


def _flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with dotted keys."""
    if not isinstance(config, dict):
        return {prefix: config}
    return {k: v for name, node in config.items() for k, v in _flat(node, f"{prefix}.{name}".lstrip(".")).items()}
