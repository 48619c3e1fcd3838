"""The noise level: the pair of scales on which everything but the schedule depends."""

from typing import NamedTuple

from torch import Tensor


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
        """Give both scales the axes of ``x`` (B, ...), so that they multiply it image by image.

        Raises ValueError unless the level has shape () or (B,): broadcasting anything else against
        the images would be silently wrong whenever B equals their width.
        """
        if self.alpha.ndim == 0:
            return self
        if self.alpha.shape != (len(x),):
            raise ValueError(
                f"a level for {len(x)} images must have shape () or ({len(x)},), got {tuple(self.alpha.shape)}"
            )
        shape = (-1,) + (1,) * (x.ndim - 1)
        return NoiseLevel(self.alpha.view(shape), self.sigma.view(shape))
