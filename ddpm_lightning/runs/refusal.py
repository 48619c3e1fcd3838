"""What a user is refused before anything runs, and the one line that says so. Quick to import: no torch here."""

import difflib
import json
import math
import re
import sys
import traceback
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

CONF = Path(__file__).resolve().parents[2] / "conf"

# What may be null though its default is not: a callback, a logger, and these
NULLABLE = re.compile(
    r"num_threads|callbacks\.(samples|checkpoint)\.every_n_train_steps|(callbacks|logger)\.\w+"
    r"|(module\.denoiser\.net|model|data)\.num_classes|trainer\.gradient_clip_val"
    r"|data\.split_sizes"
)

PLUGINS = {"hydra/sweeper": "optuna", "hydra/launcher": "joblib"}  # of the extra "sweep"


class Refusal(Exception):
    """What was asked for can't be done. One line that names the key, the value, and what is allowed."""


class Failure(Exception):
    """A run could not go on. One line that says why, and what to do."""


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
    if default is None or default == "???":  # of unknown type; the object itself knows
        if given is None and default:
            raise Refusal(f"{key}=null: must be given")
        return
    if given is None:
        if not NULLABLE.fullmatch(key):
            example = "a group of keys" if isinstance(default, dict) else f"a value, such as {default}"
            raise Refusal(f"{key}=null: must have {example}")
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


def explain_hydra(error: HydraException) -> str:
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
        if PLUGINS.get(group) == name:
            asked = (o for o in sys.argv[1:] if o.partition("=")[0] in (group, "sweep"))
            return f"{next(asked, f'{group}={name}')}: needs Hydra's {name} plugin: pip install -e '.[sweep]'"
        options = missing[3].partition("\nConfig search path")[0].split()
        return f"{group}={name}: no such option; allowed: {_listed(name, options)}"
    if isinstance(error, OverrideParseException):
        reason = text.partition("\n")[0]
        return f"{error.override}: must be key=value, and can't be read as that ({reason})"
    cause = f" ({error.__cause__})" if error.__cause__ is not None and str(error.__cause__) not in text else ""
    return text + cause


def explain_python(error: Exception) -> str:
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
        node: Any = compose(script, overrides=groups, return_hydra_config=key.startswith("hydra."))
    *parents, name = key.split(".")
    for parent in parents:
        if not isinstance(node, DictConfig) or parent not in node:
            return _listed(parent, node if isinstance(node, DictConfig) else [])
        node = OmegaConf.select(node, parent)
    return _listed(name, node if isinstance(node, DictConfig) else [])


def innermost(error: BaseException) -> str:
    """The last module of ours or of Hydra's on the way to an error."""
    modules = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    return next((name for name in reversed(modules) if name.startswith(("hydra", "ddpm_lightning"))), "")
