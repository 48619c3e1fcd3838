"""What a run says of itself in its folder: ``run.json`` from its start, ``result.json`` from its end, and the rest."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from ddpm_lightning.checkpoint import read_checkpoint
from ddpm_lightning.runs.command import write_json
from ddpm_lightning.runs.curves import Row, read_log
from ddpm_lightning.runs.describe import Facts
from ddpm_lightning.runs.refusal import Refusal
from ddpm_lightning.runs.resume import Start
from ddpm_lightning.runs.sweep import RESULT

RUN = "run.json"
PARTS = ("module", "data", "model", "trainer", "callbacks")  # of a training run's configuration, among others


class Run(NamedTuple):
    """What a run's folder holds. ``step`` is that of its last weights, None where there are none yet."""

    folder: Path
    config: dict[str, Any]
    facts: dict[str, Any]  # as in run.json; empty if an older version began the run
    result: dict[str, Any]
    finished: bool
    step: int | None
    images_seen: int | None
    train_seconds: float | None
    log: list[Row]
    grids: dict[int, Path]  # by step, in order


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


def read_run(folder: Path) -> Run:
    """The run of a folder. Raises Refusal if it holds none."""
    refusal = Refusal(f"{folder}: must be the folder of a training run, such as runs/digits, with its config.yaml")
    try:
        config: Any = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    except Exception as error:  # what is no YAML makes the parser raise almost anything
        raise refusal from error
    if not isinstance(config, dict) or not all(isinstance(config.get(part), dict) for part in PARTS):
        raise refusal
    result, last = read_json(folder / RESULT), folder / "checkpoints" / "last.ckpt"
    try:
        state = read_checkpoint(last) if last.exists() else {"global_step": result.get("step")}
    except ValueError as error:
        raise Refusal(f"{folder}: must be a run with a whole last.ckpt ({error})") from error
    # a run that was made longer still has the result of its first end
    as_long = all(result.get(key) == config["trainer"].get(key) for key in ("max_steps", "max_epochs"))
    finished = "step" in result and as_long and result["step"] == state["global_step"]
    return Run(
        folder=folder,
        config=config,
        facts=read_json(folder / RUN),
        result=result,
        finished=finished,
        step=state["global_step"],
        images_seen=state.get("images_seen"),
        train_seconds=(result if finished else state).get("train_seconds"),
        log=read_log(folder),
        grids={
            int(path.stem.removeprefix("step-")): path for path in sorted((folder / "samples").glob("step-???????.png"))
        },
    )
