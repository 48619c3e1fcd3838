"""The sampling command: a checkpoint -> pictures."""

from omegaconf import DictConfig

from ddpm_lightning.runs.modes.grid import compare
from ddpm_lightning.runs.modes.inpaint import inpaint
from ddpm_lightning.runs.modes.interpolate import interpolate
from ddpm_lightning.runs.modes.reconstruct import reconstruct
from ddpm_lightning.runs.modes.samples import draw
from ddpm_lightning.runs.modes.trajectory import trajectory
from ddpm_lightning.runs.refusal import Failure, Refusal
from ddpm_lightning.runs.sampling import open_session, sampling_context

MODES = {
    "samples": draw,
    "trajectory": trajectory,
    "interpolate": interpolate,
    "inpaint": inpaint,
    "reconstruct": reconstruct,
    "grid": compare,
}


def sample(cfg: DictConfig) -> None:
    """Make the pictures of the chosen mode, and say where they are. Raises Refusal."""
    if cfg.mode not in MODES:  # a mode of the evaluation, whose options stand in the same folder
        raise Refusal(f"mode={cfg.mode}: must be one of {', '.join(MODES)}")
    session = open_session(cfg)
    try:
        with sampling_context(session):
            print(MODES[cfg.mode](session))
    except OSError as error:  # such as a full disk; what is there is whole, and kept by the same command
        raise Failure(f"{error.filename or 'output_dir'} can't be written ({error.strerror or error})") from error
