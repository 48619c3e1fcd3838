"""The library's formulas against closed forms and second implementations."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from ddpm_lightning.evaluation.fidelity import (
    frechet_distance,
    inception_score,
    kernel_distance,
    memorisation_ratio,
    nearest,
    precision_recall,
)


def with_moments(mean, std, count=2000):
    """Features of exactly this mean and deviation in their first axis, and 0 and 1 in an uncorrelated second."""
    x = torch.randn(count, 2, dtype=torch.float64)
    x = torch.linalg.solve_triangular(torch.linalg.cholesky((x - x.mean(0)).T.cov()), (x - x.mean(0)).T, upper=False).T
    return x * torch.tensor([std, 1]) + torch.tensor([mean, 0])


def test_frechet_distance_of_two_gaussians_is_the_closed_form():
    """N(0, 1) and N(1, 4): (0 - 1)^2 + (1 - 2)^2."""
    assert frechet_distance(with_moments(0, 1), with_moments(1, 2)) == pytest.approx(2, rel=1e-6)
    assert frechet_distance(with_moments(0, 1), with_moments(0, 1)) == pytest.approx(0, abs=1e-6)


def test_frechet_distance_agrees_with_a_second_implementation():
    a, b = torch.randn(500, 8) @ torch.randn(8, 8), torch.randn(400, 8) + 0.3
    x, y = a.double().numpy(), b.double().numpy()
    covariances = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    trace = np.trace(covariances[0] + covariances[1] - 2 * sqrtm(covariances[0] @ covariances[1]).real)
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + trace
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-4)


def test_kernel_distance_agrees_with_a_second_implementation():
    a, b = torch.randn(300, 4), torch.randn(300, 4) + 0.5
    kernel = [(x.double() @ y.double().T / 4 + 1) ** 3 for x, y in ((a, a), (b, b), (a, b))]
    n = 300  # subsets of all features are the whole, so the mean over subsets is the estimate itself
    within = sum((k.sum() - k.diagonal().sum()) / (n * (n - 1)) for k in kernel[:2])
    expected = within - 2 * (kernel[2].mean())
    mean, deviation = kernel_distance(a, b)
    assert mean == pytest.approx(expected.item(), rel=1e-3)
    assert deviation == pytest.approx(0, abs=1e-6)


def test_inception_score_is_the_number_of_classes_for_sure_and_even_guesses():
    sure = torch.nn.functional.one_hot(torch.arange(1000) % 5, 5).float() * 100
    assert inception_score(sure) == pytest.approx(5, rel=0.03)  # 10 splits, not quite even
    assert inception_score(torch.zeros(1000, 5)) == pytest.approx(1, rel=1e-6)


def test_precision_is_of_the_generated_and_recall_of_the_real():
    real = torch.cat([torch.randn(200, 2), torch.randn(200, 2) + 50])
    generated = torch.randn(200, 2)  # good, but of one half alone
    precision, recall = precision_recall(generated, real)
    assert precision > 0.9
    assert 0.4 < recall < 0.55


def test_neighbours_and_recall_do_not_depend_on_where_the_features_lie():
    """Squared distances of features far from 0 would be differences of large numbers."""
    training = torch.randn(200, 8)
    features = training[:50] + 1e-3 * torch.randn(50, 8)
    distance, index = nearest(features + 300, training + 300)
    assert index.tolist() == list(range(50))
    torch.testing.assert_close(distance, (features - training[:50]).norm(dim=1), rtol=0.1, atol=1e-4)
    new = torch.randn(200, 8)
    assert precision_recall(new + 3000, training + 3000) == pytest.approx(precision_recall(new, training), abs=0.01)


def test_memorisation_is_by_medians():
    training = torch.zeros(1, 1)
    generated, held_out = torch.tensor([[1.0], [2.0], [300.0]]), torch.tensor([[4.0], [4.0], [-1000.0]])
    assert memorisation_ratio(generated, training, held_out) == 2 / 4


def test_memorisation_is_one_for_new_and_zero_for_copied_features():
    training, held_out, new = torch.randn(3, 500, 8)
    assert memorisation_ratio(new, training, held_out) == pytest.approx(1, abs=0.1)
    assert memorisation_ratio(training[:300], training, held_out) == 0
