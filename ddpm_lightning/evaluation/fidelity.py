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
        with open(path, "wb") as file:  # a name without .npz stays as it is
            np.savez(file, mu=self.mean, sigma=self.covariance, about=json.dumps(about))

    @classmethod
    def load(cls, path: Path) -> tuple["Statistics", dict[str, Any]]:
        """Those of a file, of this project or another, and what it says that they are of. Raises ValueError."""
        with np.load(path) as arrays:
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


def kernel_distance(generated: Tensor, real: Tensor) -> tuple[float, float]:
    """Mean and deviation over 100 subsets of the unbiased squared MMD with a cubic kernel.  Binkowski et al. (2018)."""
    size = min(KID_SUBSET, len(generated), len(real))
    found = kid_features_to_metric(generated, real, kid_subset_size=size, verbose=False)
    return float(found["kernel_inception_distance_mean"]), float(found["kernel_inception_distance_std"])


def inception_score(logits: Tensor) -> float:
    """exp of the mean divergence of p(class | image) from p(class), over 10 splits.  Salimans et al. (2016), sec. 4."""
    return float(isc_features_to_metric(logits)["inception_score_mean"])


def precision_recall(generated: Tensor, real: Tensor) -> tuple[float, float]:
    """Share of generated features among the real ones, and of real among the generated: within the reach of
    their 3rd neighbours.  Kynkäänniemi et al. (2019), eq. 1-3."""
    found = prc_features_to_metric(generated, real, verbose=False, save_cpu_ram=True)
    return found["precision"], found["recall"]


def nearest(features: Tensor, training: Tensor) -> tuple[Tensor, Tensor]:
    """The distance (N,) of each of the features (N, D) to the nearest training one, and the index (N,) of that."""
    index = torch.cat([torch.cdist(part, training).argmin(1) for part in features.split(1000)])
    return (features - training[index]).norm(dim=1), index  # anew, as cdist rounds the distances of copies


def memorisation_ratio(generated: Tensor, training: Tensor, held_out: Tensor) -> float:
    """Median distance of generated features to the nearest training one, by that of held-out features.

    1 for a model that is as new as held-out images are, 0 for one that copies.
    """
    medians = [nearest(features, training)[0].median() for features in (generated, held_out)]
    return float(medians[0] / medians[1])
