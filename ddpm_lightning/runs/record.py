"""What a run says of itself in its folder: ``run.json`` from its start, ``result.json`` from its end, and the rest."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from ddpm_lightning.runs.command import write_json
from ddpm_lightning.runs.describe import Facts
from ddpm_lightning.runs.resume import Start
from ddpm_lightning.runs.sweep import RESULT

RUN = "run.json"


def record_start(folder: Path, facts: Facts, start: Start) -> None:
    """Write the facts, with when and at which step the run was started, each time that it was."""
    earlier = read_json(folder / RUN).get("starts", []) if start.checkpoint else []
    now = {"time": datetime.now().astimezone().isoformat(timespec="seconds"), "step": start.step}
    write_json(folder / RUN, {**facts._asdict(), "starts": [*earlier, now]})


def finished_loss(cfg: DictConfig, folder: Path, step: int) -> float | None:
    """The held-out loss of a run that has come to its end, for as long as is asked now; else None."""
    result = read_json(folder / RESULT)
    if "step" not in result:
        return None
    as_long = (result["max_steps"], result["max_epochs"]) == (cfg.trainer.max_steps, cfg.trainer.max_epochs)
    over = (as_long and result["step"] == step) or 0 < cfg.trainer.max_steps <= step
    return float(result["metrics"]["val_loss"]) if over else None


def read_json(path: Path) -> dict[str, Any]:
    """The file's content; empty for one that is missing or no JSON."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
