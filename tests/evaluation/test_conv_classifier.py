import pytest
import torch

from ddpm_lightning.data.digits import Digits
from ddpm_lightning.evaluation.conv_classifier import ConvClassifier

STEPS = 150


@pytest.fixture(scope="module")
def digits():
    return Digits(root="unused", image_size=8, channels=1, batch_size=64, num_classes=10)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def fitted(digits, cache, steps=STEPS):
    classifier = ConvClassifier(steps, str(cache))
    classifier.fit(*digits.split("train"))
    return classifier


def test_it_finds_the_classes_of_images_it_has_not_seen(digits, cache):
    classifier = fitted(digits, cache)
    images, labels = digits.split("val")
    features, logits, predicted = classifier(images)
    assert (predicted == labels).double().mean() > 0.97
    assert features.shape == (450, 128)
    torch.testing.assert_close(logits, classifier.net[-1](features))


def test_it_is_trained_once_and_is_the_same_wherever_it_is_trained(digits, cache, tmp_path, monkeypatch):
    first = fitted(digits, cache)
    torch.manual_seed(5)
    torch.rand(3)
    before = torch.random.get_rng_state()
    assert fitted(digits, tmp_path).protocol == first.protocol
    assert torch.equal(torch.random.get_rng_state(), before)
    monkeypatch.setattr("ddpm_lightning.evaluation.conv_classifier._train", None)
    kept = fitted(digits, cache)
    assert kept.protocol == first.protocol
    images = digits.split("val").images
    assert torch.equal(kept(images).features, first(images).features)


def test_another_set_or_a_broken_file_is_trained_on_anew(digits, tmp_path):
    first = fitted(digits, tmp_path, 10)
    [file] = (tmp_path / "classifiers").iterdir()
    file.write_bytes(file.read_bytes()[:-7])
    assert fitted(digits, tmp_path, 10).protocol == first.protocol
    images, labels = digits.split("train")
    other = ConvClassifier(10, str(tmp_path))
    other.fit(images, labels.flip(0))
    assert other.protocol["sha256"] != first.protocol["sha256"]
    assert len(list((tmp_path / "classifiers").iterdir())) == 2


def test_impossible_settings_and_sets_are_refused(tmp_path):
    with pytest.raises(ValueError, match="steps must be at least 10, got 9"):
        ConvClassifier(9)
    with pytest.raises(ValueError, match="features must be inception for a set without classes"):
        ConvClassifier(10).fit(torch.zeros(5, 1, 8, 8, dtype=torch.uint8), torch.zeros(5, dtype=torch.int64))
