"""The evaluation command: a checkpoint or images -> figures, with all it takes to get them again."""

from omegaconf import DictConfig

from ddpm_lightning.runs.figures.fidelity import fidelity, same_hash
from ddpm_lightning.runs.figures.likelihood import likelihood
from ddpm_lightning.runs.figures.reconstruction import reconstruction
from ddpm_lightning.runs.figures.selfcheck import selfcheck
from ddpm_lightning.runs.refusal import Failure, Refusal
from ddpm_lightning.runs.sampling import Session, open_session, sampling_context

MODES = {"fidelity": fidelity, "selfcheck": selfcheck}
OF_A_MODEL = {"likelihood": likelihood, "reconstruction": reconstruction}


def evaluate(cfg: DictConfig) -> float:
    """Run the chosen mode. Returns its first figure.

    Raises Refusal for what can't be done, Failure if files can't be written; what is there is whole by then, and used
    by the same command again.
    """
    if cfg.mode not in {**MODES, **OF_A_MODEL}:
        allowed = ", ".join([*MODES, *OF_A_MODEL])
        raise Refusal(f"mode={cfg.mode}: must be one of {allowed}; the others are those of sample.py")
    session = None if cfg.ckpt is None else _open(cfg)
    try:
        if cfg.mode in MODES:
            return MODES[cfg.mode](cfg, session)
        if session is None:
            raise Refusal(f"ckpt: must be given, as ckpt=..., for mode={cfg.mode}")
        with sampling_context(session):
            return OF_A_MODEL[cfg.mode](session)
    except OSError as error:  # such as a full disk
        raise Failure(f"{error.filename or 'a file'} can't be written ({error.strerror or error})") from error


def _open(cfg: DictConfig) -> Session:
    session = open_session(cfg)
    wanted, found = cfg.ckpt_sha256, session.loaded.sha256
    if wanted is not None and not same_hash(wanted, found):
        raise Refusal(f"ckpt_sha256={wanted}: must be that of {session.loaded.path}, sha256-{found[:8]}")
    return session
