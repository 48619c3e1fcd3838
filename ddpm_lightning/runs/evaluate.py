"""The evaluation command: a checkpoint or images -> figures, with all it takes to get them again."""

from omegaconf import DictConfig

from ddpm_lightning.runs.figures.fidelity import fidelity
from ddpm_lightning.runs.figures.selfcheck import selfcheck
from ddpm_lightning.runs.refusal import Refusal
from ddpm_lightning.runs.sampling import Session, open_session

MODES = {"fidelity": fidelity, "selfcheck": selfcheck}


def evaluate(cfg: DictConfig) -> float:
    """Run the chosen mode. Returns its first figure."""
    if cfg.mode not in MODES:
        raise Refusal(f"mode={cfg.mode}: must be one of {', '.join(MODES)}; the others are those of sample.py")
    return MODES[cfg.mode](cfg, None if cfg.ckpt is None else _open(cfg))


def _open(cfg: DictConfig) -> Session:
    session = open_session(cfg)
    wanted, found = cfg.ckpt_sha256, session.loaded.sha256
    if wanted is not None and (len(str(wanted)) < 8 or not found.startswith(str(wanted))):
        raise Refusal(f"ckpt_sha256={wanted}: must be that of {session.loaded.path}, {found[:8]}...")
    return session
