"""Images encoded into noise, and back."""

from collections.abc import Callable

from torch import Tensor

from ddpm_lightning.diffusion.samplers.ddim import DDIMSampler
from ddpm_lightning.diffusion.samplers.inversion import invert
from ddpm_lightning.runs.refusal import Refusal
from ddpm_lightning.runs.sampling import Session, check_integer


def check_inversion(session: Session) -> None:
    """Refuse a sampler that no inversion undoes."""
    check_integer(session.cfg, "refinements", 0)
    if not isinstance(session.sampler, DDIMSampler) or session.sampler.eta:
        mode = session.cfg.mode
        raise Refusal(f"sampler: must be ddim with sampler.eta=0 for mode={mode}, as no other can be undone")


def there_and_back(
    session: Session, x_0: Tensor, label: Tensor | None, on_move: Callable[[int], None]
) -> tuple[Tensor, Tensor]:
    """The noise that images (B, C, H, W) become by DDIM's inversion, and the images that DDIM makes of it.

    ``on_move`` is told after each move how many images made it: twice as many moves as the sampler has steps.
    """
    steps, spacing = session.sampler.num_steps, session.sampler.spacing
    x_T = x = invert(session.denoiser, x_0, steps, spacing, label, session.cfg.refinements, on_move)
    for stage in DDIMSampler(steps, spacing, clip_x0=False).trajectory(session.denoiser, x_T, label):
        x = stage.x_s  # without clipping, which can't be undone
        on_move(len(x))
    return x_T, x
