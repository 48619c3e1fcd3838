"""The extractor of features in which images of a kind are compared."""

from collections.abc import Sequence

from ddpm_lightning.evaluation.conv_classifier import ConvClassifier
from ddpm_lightning.evaluation.features import Classifier, Features, Inception

SMALL = 16  # pixels: below, convolutions have little to look at


def suited(image_shape: Sequence[int]) -> Features:
    """Inception for colour images (C, H, W); for grey ones, that mean little to it, a classifier of the training
    split."""
    if image_shape[0] == 3:
        return Inception()
    return Classifier() if max(image_shape[1:]) < SMALL else ConvClassifier()
