"""How a command starts and ends: a mistake in what was asked for gives one line on stderr and exit code 2.

Imported before the configuration is known, so it must be quick: no torch here.
"""

import difflib
import functools
import json
import math
import os
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

CONF = Path(__file__).resolve().parents[2] / "conf"
JOB_RECORD = "job.json"  # what became of a job of a sweep
JOB_CONFIG = ".job.yaml"
JOB_VARIABLE = "DDPM_JOB_CONFIG"

# What may be null though its default is not: a callback, a logger, and these
NULLABLE = re.compile(
    r"(callbacks|logger)\.\w+|(module\.denoiser\.net|model|data)\.num_classes|trainer\.gradient_clip_val|data\.split_sizes"
)

Task = Callable[[DictConfig], Any]

OmegaConf.register_new_resolver(
    "image_shape", lambda channels, size: [channels, *([size, size] if isinstance(size, int) else size)], replace=True
)


class Refusal(Exception):
    """What was asked for can't be done. One line that names the key, the value, and what is allowed."""


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
    record: dict[str, Any] = {"overrides": list(HydraConfig.get().overrides.task)}
    # processes that Lightning starts for further devices are handed this very job, and not the sweep
    described = folder / JOB_CONFIG
    OmegaConf.save(cfg, described)
    os.environ[JOB_VARIABLE] = str(described)
    try:
        check_types(cfg)
        OmegaConf.save(cfg, described, resolve=True)
        result = task(cfg)
        record["status"] = "finished"
        return result
    except Refusal as refusal:
        record |= {"status": "refused", "error": str(refusal)}
        _say(str(refusal))
        return math.nan
    except Exception as error:
        record |= {"status": "failed", "error": f"{type(error).__name__}: {error}"}
        traceback.print_exc()
        return math.nan
    finally:
        write_json(folder / JOB_RECORD, record)
        described.unlink(missing_ok=True)
        _forget_processes()


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
        _say(_explain(error, main.__module__))
        raise SystemExit(2) from None
    except (OSError, ValueError) as error:
        if wants_traceback or not _innermost(error).startswith("hydra"):
            raise
        _say(_explain_other(error))
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        _say("interrupted")
        raise SystemExit(130) from None


def _wants_traceback() -> bool:
    return os.environ.get("DDPM_FULL_ERROR", os.environ.get("HYDRA_FULL_ERROR", "0")) not in ("", "0")


def _say(line: str) -> None:
    print(f"{Path(sys.argv[0]).name}: {' '.join(line.split())}", file=sys.stderr)


def _innermost(error: BaseException) -> str:
    """The last module of ours or of Hydra's on the way to an error."""
    modules = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    return next((name for name in reversed(modules) if name.startswith(("hydra", "ddpm_lightning"))), "")


def write_json(path: Path, content: Any) -> None:
    """Write a file whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(part, path)


def check_types(cfg: DictConfig) -> None:
    """Raise Refusal for a value of another type than the default's, and for a key that nothing would read."""
    hydra_config = HydraConfig.get()
    choices = hydra_config.runtime.choices
    parsed = OverridesParser.create().parse_overrides(list(hydra_config.overrides.task))
    groups = [o for o in parsed if o.key_or_group in choices and not o.is_delete()]
    default = compose(hydra_config.job.config_name, overrides=[str(group.input_line) for group in groups])
    try:
        for key in sorted(OmegaConf.missing_keys(cfg)):
            raise Refusal(f"{key}: must be given, as {key}=...")
        given = OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        raise Refusal(
            f"{error.full_key}: takes its value from a key that is null or gone, and must be given"
        ) from error
    _compare("", OmegaConf.to_container(default, resolve=True), given)


def _compare(key: str, default: Any, given: Any) -> None:
    if isinstance(default, dict) and isinstance(given, dict):
        # what interpolations copy into the module comes last, so that the key named is the one a user types
        for name, value in sorted(given.items(), key=lambda item: item[0] == "module"):
            path = f"{key}.{name}".lstrip(".")
            if name in default:
                _compare(path, default[name], value)
            elif "_target_" not in default:  # otherwise the object itself knows
                raise Refusal(f"{path}={value}: no such key; allowed: {_listed(name, default)}")
        for name in default.keys() - given.keys():
            raise Refusal(f"~{key}.{name}: can't be removed; allowed: another value".replace("~.", "~"))
        return
    if default is None:  # of unknown type; the object itself knows
        return
    if given is None:
        if not NULLABLE.fullmatch(key):
            raise Refusal(f"{key}=null: must have a value, such as {default}")
        return
    if isinstance(given, list) and not isinstance(default, dict):  # a list of what may stand alone, too
        defaults = default if isinstance(default, list) else [default]
        for value in given if defaults else []:
            _compare(key, defaults[0], value)
        return
    wanted = _wanted(default)
    number = isinstance(given, int | float) and not isinstance(given, bool)
    fits = {
        "true or false": isinstance(given, bool),
        "an integer": number and isinstance(given, int),
        "a finite number": number and math.isfinite(given),
        "a text": not isinstance(given, dict | bool) or key.startswith("trainer."),  # whose "auto" may be true or false
    }
    if not fits.get(wanted, False):
        value, example = (json.dumps(v) if isinstance(v, bool | dict) else v for v in (given, default))
        raise Refusal(f"{key}={value}: must be {wanted}, such as {example}")


def _wanted(default: Any) -> str:
    if isinstance(default, bool):
        return "true or false"
    if isinstance(default, int):
        return "an integer"
    if isinstance(default, float):
        return "a finite number"
    if isinstance(default, str):
        return "a text"
    return "a list" if isinstance(default, list) else "a group of keys"


def _listed(name: str, allowed: Any) -> str:
    """The allowed names, the nearest first if one is near."""
    names = sorted(str(n) for n in allowed if not str(n).startswith("_"))
    near = difflib.get_close_matches(str(name), names, n=1)
    return ", ".join(names) + (f" (did you mean {near[0]}?)" if near else "")


def _explain(error: HydraException, module: str) -> str:
    """Hydra's several lines in one, with the choices where it names none."""
    text = str(error)
    unknown = re.match(r"Could not override '([^']+)'", text)
    if unknown:
        key = unknown[1]
        asked = next((o for o in sys.argv[1:] if o.lstrip("+~").partition("=")[0].partition("@")[0] == key), key)
        return f"{asked}: no such key; allowed: {_siblings(key)}"
    missing = re.search(
        r"(?:Could not find|In '.*': Could not find) '([^']+)'.*Available options in '([^']+)':(.*)", text, re.DOTALL
    )
    if missing:
        group, _, name = missing[1].rpartition("/")
        options = missing[3].partition("\nConfig search path")[0].split()
        return f"{group}={name}: no such option; allowed: {_listed(name, options)}"
    if isinstance(error, OverrideParseException):
        reason = text.partition("\n")[0]
        return f"{error.override}: must be key=value, and can't be read as that ({reason})"
    cause = f" ({error.__cause__})" if error.__cause__ is not None and str(error.__cause__) not in text else ""
    return text + cause


def _explain_other(error: Exception) -> str:
    """Mistakes that Hydra lets Python report: a group without an option, a folder that can't be made."""
    for argument in sys.argv[1:]:
        group, _, option = argument.partition("=")
        if option == "null" and (CONF / group).is_dir():
            options = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
            return f"{argument}: must be one of {', '.join(options)}"
    return (
        f"name, output_dir: must be a folder that can be written ({error})"
        if isinstance(error, OSError)
        else str(error)
    )


def _siblings(key: str) -> str:
    """The keys that stand where an unknown one was given."""
    script = Path(sys.argv[0]).stem
    groups = []
    for argument in sys.argv[1:]:
        name, _, value = argument.partition("=")
        if (CONF / name / f"{value}.yaml").is_file():
            groups.append(argument)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        node: Any = compose(script, overrides=groups)
    *parents, name = key.split(".")
    for parent in parents:
        if not isinstance(node, DictConfig) or parent not in node:
            return _listed(parent, node if isinstance(node, DictConfig) else [])
        node = OmegaConf.select(node, parent)
    return _listed(name, node if isinstance(node, DictConfig) else [])
