"""How a command starts and ends: a mistake in what was asked for gives one line on stderr and exit code 2.

Imported before the configuration is known, so it must be quick: no torch here.
"""

import functools
import json
import math
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from ddpm_lightning.runs.refusal import Failure, Refusal, check_types, explain_hydra, explain_python, innermost

JOB_RECORD = "job.json"  # what became of a job of a sweep
JOB_CONFIG = ".job.yaml"
JOB_VARIABLE = "DDPM_JOB_CONFIG"

# Hydra copies its store of configurations, with that of plugins, for each group that --help lists, and only reads it
ConfigStore.__deepcopy__ = lambda store, memo: store  # type: ignore[attr-defined]

Task = Callable[[DictConfig], Any]

OmegaConf.register_new_resolver(
    "image_shape", lambda channels, size: [channels, *([size, size] if isinstance(size, int) else size)], replace=True
)


def job(task: Task) -> Task:
    """Check the configuration before the task, and end in one line what is refused: of a sweep that job alone."""

    @functools.wraps(task)
    def checked(cfg: DictConfig) -> Any:
        hydra_config = HydraConfig.get()
        folder = Path(hydra_config.runtime.output_dir)
        if hydra_config.mode == RunMode.MULTIRUN:
            return _one_of_many(task, cfg, folder)
        try:
            check_types(cfg)
            return task(cfg)
        except Failure as failure:
            if _wants_traceback():
                raise
            _say(str(failure))
            raise SystemExit(1) from None
        except Refusal as refusal:
            if _wants_traceback():
                raise
            _say(str(refusal))
            if folder.is_dir() and folder.resolve() != Path.cwd() and not any(folder.iterdir()):
                folder.rmdir()  # Hydra made it
            raise SystemExit(2) from None

    return checked


def _one_of_many(task: Task, cfg: DictConfig, folder: Path) -> Any:
    """A job of a sweep: its outcome is left in its folder for the table, and the next job runs whatever it was."""
    record: dict[str, Any] = {"overrides": list(HydraConfig.get().overrides.task), "status": "stopped"}
    # processes that Lightning starts for further devices are handed this very job, and not the sweep
    described = folder / JOB_CONFIG
    os.environ[JOB_VARIABLE] = str(described)
    sys.modules["__main__"].__spec__ = None  # by this they would start joblib's worker, where that runs the job
    outcome: Any = math.nan
    try:
        check_types(cfg)
        OmegaConf.save(cfg, described, resolve=True)
        outcome = task(cfg)
        record["status"] = "finished"
    except Refusal as refusal:
        record |= {"status": "refused", "error": str(refusal)}
        _say(str(refusal))
    except Failure as failure:
        record |= {"status": "failed", "error": str(failure)}
        _say(str(failure))
    except Exception as error:
        record |= {"status": "failed", "error": f"{type(error).__name__}: {error}"}
        traceback.print_exc()
    finally:
        write_json(folder / JOB_RECORD, record)
        described.unlink(missing_ok=True)
        _forget_processes()
    # of jobs without a value Optuna would learn nothing, and a search of them alone would end in an error
    worst = -math.inf if searched(HydraConfig.get()) == "maximize" else math.inf
    return worst if isinstance(outcome, float) and math.isnan(outcome) else outcome


def searched(hydra_config: Any) -> str | None:
    """Whether Optuna is to minimize or maximize what the jobs return; None for a sweep that is no search."""
    direction = OmegaConf.select(hydra_config, "sweeper.direction")
    return None if direction is None else str(getattr(direction, "name", direction))


def _forget_processes() -> None:
    """Let the next job of a sweep start processes of its own."""
    os.environ.pop(JOB_VARIABLE, None)
    if "torch" in sys.modules:
        import torch.distributed as dist

        if dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()
    if "TORCHELASTIC_RUN_ID" not in os.environ and "SLURM_JOB_ID" not in os.environ:
        for name in ("LOCAL_RANK", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE"):
            os.environ.pop(name, None)


def run(main: Callable[[], Any]) -> None:
    """Call a ``@hydra.main`` function, and end what Hydra refuses in one line as well."""
    wants_traceback = _wants_traceback()
    os.environ["DDPM_FULL_ERROR"] = "1" if wants_traceback else "0"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # makes Hydra raise what it would print
    warnings.showwarning = _show_warning  # not formatwarning, which Lightning sets anew
    handed = os.environ.get(JOB_VARIABLE)
    if handed and int(os.environ.get("LOCAL_RANK", "0")) > 0:
        # started by Lightning for one job of a sweep; Hydra would run the sweep again
        cast(Any, main).__wrapped__.__wrapped__(OmegaConf.load(handed))
        return
    try:
        main()
    except HydraException as error:
        if wants_traceback:
            raise
        _say(explain_hydra(error))
        raise SystemExit(2) from None
    except (OSError, ValueError) as error:
        if wants_traceback or not innermost(error).startswith("hydra"):
            raise
        _say(explain_python(error))
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        _say("interrupted")
        raise SystemExit(130) from None


def _wants_traceback() -> bool:
    return os.environ.get("DDPM_FULL_ERROR", os.environ.get("HYDRA_FULL_ERROR", "0")) not in ("", "0")


def _show_warning(message: Any, *where: Any, **more: Any) -> None:
    """What is worth a warning, without the line of code that thought so."""
    _say(f"warning: {message}")


def _say(line: str) -> None:
    print(f"{Path(sys.argv[0]).name}: {' '.join(line.split())}", file=sys.stderr)


def write_json(path: Path, content: Any) -> None:
    """Write a file whole or not at all."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def write_text(path: Path, content: str) -> None:
    """Write a file whole or not at all."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_text(content)
    os.replace(part, path)
