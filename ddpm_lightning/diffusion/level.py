"""The noise level: the pair of scales on which everything but the schedule depends."""

from typing import NamedTuple

from torch import Tensor


def expand(scale: Tensor, x: Tensor) -> Tensor:
    """Give a scale of shape () or (B,) the axes of ``x`` (B, ...), so that it multiplies it image by image.

    Raises ValueError for any other shape: broadcasting it against the images would be silently wrong whenever B
    equals their width.
    """
    if scale.ndim == 0:
        return scale
    if scale.shape != (len(x),):
        raise ValueError(f"a level for {len(x)} images must have shape () or ({len(x)},), got {tuple(scale.shape)}")
    return scale.view((-1,) + (1,) * (x.ndim - 1))


class NoiseLevel(NamedTuple):
    """Scales of ``x_t = alpha x_0 + sigma noise``, with ``alpha^2 + sigma^2 = 1``.

    Each is a tensor of shape ``()``, one level for the whole batch, or ``(B,)``, one for each image.
    """

    alpha: Tensor
    sigma: Tensor

    @property
    def snr(self) -> Tensor:
        """Signal-to-noise ratio alpha^2 / sigma^2 in [0, inf]; inf for clean images."""
        return (self.alpha / self.sigma) ** 2

    @property
    def log_snr(self) -> Tensor:
        """Natural logarithm of the signal-to-noise ratio, in [-inf, inf]."""
        return 2 * (self.alpha / self.sigma).log()

    def like(self, x: Tensor) -> "NoiseLevel":
        """Both scales with the axes of ``x`` (B, ...). Raises ValueError unless the level has shape () or (B,)."""
        return NoiseLevel(expand(self.alpha, x), expand(self.sigma, x))
