"""Configuration -> objects, with errors that name the key on the command line."""

import copy
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf

from ddpm_lightning.runs.refusal import Refusal

EXTRAS = {"wandb": "wandb", "datasets": "hf"}  # what to install for a package that is missing
MISTAKES = (ValueError, TypeError, IndexError, OSError, MisconfigurationException)


def build(cfg: DictConfig, key: str, **kwargs: Any) -> Any:
    """The object that ``cfg[key]`` describes. Raises Refusal if its constructor does not accept the values."""
    try:
        # a copy, as Hydra resolves what it is given, and the interpolations tell which key a user types
        return instantiate(copy.deepcopy(cfg)[key], _convert_="all", **kwargs)
    except InstantiationException as error:
        cause = error.__cause__
        where = command_line_key(cfg, _full_key(error, key))
        if isinstance(cause, MISTAKES):
            named, space, rest = explain(where, cause).partition(" ")
            raise Refusal(command_line_key(cfg, named) + space + rest) from error
        if isinstance(cause, ImportError):
            extra = next((extra for name, extra in EXTRAS.items() if name in str(cause)), None)
            raise Refusal(f"{where}: needs pip install -e '.[{extra}]'" if extra else f"{where}: {cause}") from error
        raise Refusal(f"{where}: {str(error).partition('full_key')[0]}") from error


def explain(key: str, mistake: Exception) -> str:
    """``schedule.num_steps must ...`` from a constructor's ``num_steps must ...``; ``key: ...`` from other words."""
    text = str(mistake)
    first, _, rest = text.partition(" ")
    name, given, _ = first.partition("=")
    says = given or rest.startswith(("must", "with", "holds", "needs", "names", "and"))
    if name == key and says:  # the words name the whole group
        return text
    return f"{key}.{text}" if name.isidentifier() and says else f"{key}: {text}"


def _full_key(error: InstantiationException, key: str) -> str:
    _, found, full_key = str(error).rpartition("full_key: ")
    full_key = full_key.strip()
    return (
        full_key
        if found and full_key.split(".")[0] == key
        else ".".join(filter(None, (key, full_key if found else "")))
    )


def command_line_key(cfg: DictConfig, key: str) -> str:
    """Where a key stands that is reached by interpolation: ``module.denoiser.net`` is ``model``."""
    parts = key.split(".")
    node: Any = cfg
    for i, part in enumerate(parts):
        if not isinstance(node, DictConfig) or part not in node:
            break
        if OmegaConf.is_interpolation(node, part):
            target = str(OmegaConf.to_container(node, resolve=False)[part]).strip("${}")  # type: ignore[call-overload, index]
            return command_line_key(cfg, ".".join([target, *parts[i + 1 :]]))
        node = node[part]
    return key
