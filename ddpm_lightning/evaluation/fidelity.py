"""How near two sets of images are, in features: torch-fidelity's own formulas."""

import torch
from torch import Tensor
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

METRICS = ("fid", "kid", "is", "prc", "memorisation")
KID_SUBSET = 1000


def frechet_distance(generated: Tensor, real: Tensor) -> float:
    """Between Gaussians with the means and covariances of two sets of features (N, D).  Heusel et al. (2017), eq. 6."""
    statistics = [fid_features_to_statistics(features) for features in (generated, real)]
    return float(fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"])


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


def memorisation_ratio(generated: Tensor, training: Tensor, held_out: Tensor) -> float:
    """Median distance of generated features to the nearest training one, by that of held-out features.

    1 for a model that is as new as held-out images are, 0 for one that copies.
    """
    to_training = [
        torch.cat([torch.cdist(part, training).amin(1) for part in features.split(1000)]).median()
        for features in (generated, held_out)
    ]
    return float(to_training[0] / to_training[1])
