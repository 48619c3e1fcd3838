"""Whether a run starts afresh or goes on, and from where."""

from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig

from ddpm_lightning.checkpoint import find_checkpoint, read_checkpoint
from ddpm_lightning.runs.command import Refusal

# What may differ between a run and the one it goes on from: where things are, how long it is, and what is shown.
FREE = (
    *("name", "resume", "output_dir", "logger", "sampler", "data.root", "data.cache", "data.eval_batch_size"),
    *(f"callbacks.{name}" for name in ("checkpoint", "best", "last", "samples", "progress", "lr", "loss_by_time")),
    *(
        "module.val_times",
        "module.compile",
        "lr_schedule.num_steps",
        "module.lr_schedule.num_steps",
        "trainer.max_steps",
        "trainer.max_epochs",
    ),
    *("trainer.val_check_interval", "trainer.check_val_every_n_epoch", "trainer.limit_val_batches"),
    *("trainer.log_every_n_steps", "trainer.enable_progress_bar", "trainer.default_root_dir"),
    *("trainer.accelerator", "trainer.strategy"),
)


class Start(NamedTuple):
    """The checkpoint a run goes on from, and its step; None and 0 for a fresh start."""

    checkpoint: Path | None
    step: int


def find_start(cfg: DictConfig, config: dict[str, Any], folder: Path) -> Start:
    """Where the run of this configuration starts. Raises Refusal rather than mix or overwrite runs."""
    last = folder / "checkpoints" / "last.ckpt"
    if cfg.resume == "never" and last.exists():
        raise Refusal(
            f"resume=never: {folder} holds a run; allowed: another name=, resume=auto, or removing that folder"
        )
    if cfg.resume == "never" or (cfg.resume == "auto" and not last.exists()):
        return Start(None, 0)
    try:
        path = last if cfg.resume == "auto" else find_checkpoint(cfg.resume)
        checkpoint = read_checkpoint(path)
    except (FileNotFoundError, ValueError) as error:
        raise Refusal(f"resume={cfg.resume}: must be auto, never, or a checkpoint or run folder ({error})") from error
    _check_same(_flat(checkpoint["config"]), _flat(config), path)
    return Start(path, checkpoint["global_step"])


def _check_same(saved: dict[str, Any], config: dict[str, Any], path: Path) -> None:
    # the groups before what the module takes from them, so that the key named is the one a user types
    for key in sorted(saved.keys() | config.keys(), key=lambda key: (key.startswith("module."), key)):
        if any(key == free or key.startswith(f"{free}.") for free in FREE):
            continue
        if saved.get(key) != config.get(key):
            raise Refusal(
                f"{key}={config.get(key)}: must be {saved.get(key)}, with which {path} was trained;"
                " or give the new run another name="
            )


def _flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with dotted keys."""
    if not isinstance(config, dict):
        return {prefix: config}
    return {k: v for name, node in config.items() for k, v in _flat(node, f"{prefix}.{name}".lstrip(".")).items()}
