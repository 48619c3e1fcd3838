"""How near two sets of images are, in features: torch-fidelity's own formulas."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from ddpm_lightning.evaluation.store import read_arrays, replace_whole

KID_SUBSETS = 100
IS_SPLITS = 10
NEIGHBOURS = 3
METRICS = ("fid", "kid", "is", "prc", "memorisation")
KID_SUBSET = 1000


class Statistics(NamedTuple):
    """Mean (D,) and covariance (D, D) of features, float64."""

    mean: np.ndarray
    covariance: np.ndarray

    @classmethod
    def of(cls, features: Tensor) -> "Statistics":
        """Of at least two features (N, D)."""
        found = fid_features_to_statistics(features.double())  # in float32 its mean would be rounded
        return cls(found["mu"], found["sigma"])

    def save(self, path: Path, about: dict[str, Any]) -> None:
        """As ``mu`` and ``sigma``, the names other projects use, and what they are of."""

        def write(part: Path) -> None:
            with open(part, "wb") as file:  # a name without .npz stays as it is
                np.savez(file, mu=self.mean, sigma=self.covariance, about=json.dumps(about))

        replace_whole(path, write)

    @classmethod
    def load(cls, path: Path) -> tuple["Statistics", dict[str, Any]]:
        """Those of a file, of this project or another, and what it says that they are of.

        Raises KeyError for a file without ``mu`` and ``sigma``, ValueError for one that can't be read.
        """
        arrays = read_arrays(path)
        if not {"mu", "sigma"} <= arrays.keys():
            raise KeyError(f"{path} has no mu and sigma")
        mean, covariance = arrays["mu"].astype(np.float64), arrays["sigma"].astype(np.float64)
        about = json.loads(str(arrays["about"])) if "about" in arrays else {}
        if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
            raise ValueError(f"mu must be (D,) and sigma (D, D), got {mean.shape} and {covariance.shape}")
        return cls(mean, covariance), about


def frechet_distance(generated: Tensor | Statistics, real: Tensor | Statistics) -> float:
    """Between Gaussians with the means and covariances of two sets of features (N, D).  Heusel et al. (2017), eq. 6."""
    both = [x if isinstance(x, Statistics) else Statistics.of(x) for x in (generated, real)]
    known = [{"mu": x.mean, "sigma": x.covariance} for x in both]
    return float(fid_statistics_to_metric(*known, verbose=False)["frechet_inception_distance"])


def kernel_subset(generated: int, real: int) -> int:
    """How many of so many features a subset of the kernel distance has."""
    return min(KID_SUBSET, generated, real)


def kernel_distance(generated: Tensor, real: Tensor) -> tuple[float, float]:
    """Mean and deviation over 100 subsets of the unbiased squared MMD with a cubic kernel.  Binkowski et al. (2018)."""
    size = kernel_subset(len(generated), len(real))
    found = kid_features_to_metric(
        generated.double(), real.double(), kid_subsets=KID_SUBSETS, kid_subset_size=size, verbose=False
    )
    return float(found["kernel_inception_distance_mean"]), float(found["kernel_inception_distance_std"])


def inception_score(logits: Tensor) -> float:
    """exp of the mean divergence of p(class | image) from p(class), over 10 splits.  Salimans et al. (2016), sec. 4."""
    return float(isc_features_to_metric(logits, splits=IS_SPLITS)["inception_score_mean"])


def precision_recall(generated: Tensor, real: Tensor) -> tuple[float, float]:
    """Share of generated features among the real ones, and of real among the generated: within the reach of
    their 3rd neighbours.  Kynkäänniemi et al. (2019), eq. 1-3."""
    centre = real.mean(0)  # far from which the library's distances would be rounded
    found = prc_features_to_metric(
        generated - centre, real - centre, prc_neighborhood=NEIGHBOURS, verbose=False, save_cpu_ram=True
    )
    return found["precision"], found["recall"]


def nearest(features: Tensor, training: Tensor) -> tuple[Tensor, Tensor]:
    """The distance (N,) of each of the features (N, D) to the nearest training one, and the index (N,) of that."""
    centre = training.mean(0)  # far from which cdist would round
    centred = training - centre
    index = torch.cat([torch.cdist(part - centre, centred).argmin(1) for part in features.split(1000)])
    return (features - training[index]).norm(dim=1), index  # anew, as cdist rounds the distances of copies


def memorisation_ratio(generated: Tensor, training: Tensor, held_out: Tensor) -> float:
    """Median distance of generated features to the nearest training one, by that of held-out features.

    1 for a model that is as new as held-out images are, 0 for one that copies.
    """
    medians = [nearest(features, training)[0].median() for features in (generated, held_out)]
    return float(medians[0] / medians[1])
