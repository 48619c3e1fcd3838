"""Denoising diffusion models for images.

``from ddpm_lightning import load, sample`` is the way in for notebooks; the rest is commands, see the README.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from ddpm_lightning.library import load, sample

__all__ = ["load", "sample"]


def __getattr__(name: str) -> Any:
    """Import torch when something needs it, and not before: commands refuse mistakes without."""
    if name in __all__:
        from ddpm_lightning import library

        return getattr(library, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
