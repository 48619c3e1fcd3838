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
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

CONF = Path(__file__).resolve().parents[2] / "conf"
REFUSED = "refused.json"

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
        try:
            check_types(cfg)
            return task(cfg)
        except Refusal as refusal:
            if _wants_traceback():
                raise
            return _end(refusal)

    return checked


def run(main: Callable[[], Any]) -> None:
    """Call a ``@hydra.main`` function, and end what Hydra refuses in one line as well."""
    wants_traceback = _wants_traceback()
    os.environ["DDPM_FULL_ERROR"] = "1" if wants_traceback else "0"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # makes Hydra raise what it would print
    try:
        main()
    except HydraException as error:
        if wants_traceback:
            raise
        _say(_explain(error, main.__module__))
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        _say("interrupted")
        raise SystemExit(130) from None


def _wants_traceback() -> bool:
    return os.environ.get("DDPM_FULL_ERROR", os.environ.get("HYDRA_FULL_ERROR", "0")) not in ("", "0")


def _say(line: str) -> None:
    print(f"{Path(sys.argv[0]).name}: {' '.join(line.split())}", file=sys.stderr)


def _end(refusal: Refusal) -> float:
    hydra_config = HydraConfig.get()
    folder = Path(hydra_config.runtime.output_dir)
    _say(str(refusal))
    if hydra_config.mode == RunMode.MULTIRUN:
        metrics = {"error": str(refusal)}
        record = {"status": "refused", "overrides": list(hydra_config.overrides.task), "metrics": metrics}
        (folder / REFUSED).write_text(json.dumps(record, indent=1) + "\n")
        return math.nan
    if folder.is_dir() and folder.resolve() != Path.cwd() and not any(folder.iterdir()):
        folder.rmdir()  # Hydra made it
    raise SystemExit(2)


def check_types(cfg: DictConfig) -> None:
    """Raise Refusal for a value of another type than the default's, and for a key that nothing would read."""
    hydra_config = HydraConfig.get()
    choices = hydra_config.runtime.choices
    parsed = OverridesParser.create().parse_overrides(list(hydra_config.overrides.task))
    groups = [str(o.input_line) for o in parsed if o.key_or_group in choices and not o.is_delete()]
    default = compose(hydra_config.job.config_name, overrides=groups)
    for key in sorted(OmegaConf.missing_keys(cfg)):
        raise Refusal(f"{key}: must be given, as {key}=...")
    _compare("", OmegaConf.to_container(default, resolve=True), OmegaConf.to_container(cfg, resolve=True))


def _compare(key: str, default: Any, given: Any) -> None:
    if isinstance(default, dict) and isinstance(given, dict):
        # what interpolations copy into the module comes last, so that the key named is the one a user types
        for name, value in sorted(given.items(), key=lambda item: item[0] == "module"):
            path = f"{key}.{name}".lstrip(".")
            if name in default:
                _compare(path, default[name], value)
            elif "_target_" not in default:  # otherwise the object itself knows
                raise Refusal(f"{path}={value}: no such key; allowed: {_listed(name, default)}")
        return
    if default is None or given is None:  # types unknown; the object itself knows
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
        "a text": not isinstance(given, dict),
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
