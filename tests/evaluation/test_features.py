import hashlib

import pytest
import torch

from ddpm_lightning.data.digits import Digits
from ddpm_lightning.evaluation.features import INCEPTION_FILE, Classifier, Inception, Pixels


@pytest.fixture(scope="module")
def digits():
    return Digits(root="unused", image_size=8, channels=1, batch_size=64, num_classes=10)


@pytest.fixture(scope="module")
def classifier(digits):
    found = Classifier()
    found.fit(*digits.split("train"))
    return found


def test_the_svm_gets_nearly_all_held_out_digits_right(digits, classifier):
    images, labels = digits.split("val")
    assert (classifier(images).predicted == labels).double().mean().item() == pytest.approx(0.993, abs=0.001)


def test_features_are_the_last_hidden_layer_of_the_mlp(digits, classifier):
    """Its own predictions, from our features and its last layer."""
    images, _ = digits.split("val")
    features, logits, _ = classifier(images)
    assert features.shape == (450, 32)
    assert features.min() == 0
    pixels = images.flatten(1).double().numpy() / 127.5 - 1
    assert (logits.argmax(1).numpy() == classifier.mlp.predict(pixels)).all()
    probabilities = torch.from_numpy(classifier.mlp.predict_proba(pixels)).float()
    torch.testing.assert_close(logits.softmax(1), probabilities, atol=1e-4, rtol=0)


def test_the_classifier_is_the_same_each_time(digits, classifier):
    again = Classifier()
    again.fit(*digits.split("train"))
    assert again.protocol["sha256"] == classifier.protocol["sha256"]


def test_pixels_are_features_of_small_images_alone():
    images = torch.tensor([[[[0, 255]]], [[[51, 204]]]], dtype=torch.uint8)
    torch.testing.assert_close(Pixels()(images).features, torch.tensor([[-1.0, 1.0], [-0.6, 0.6]]))
    with pytest.raises(ValueError, match="features must be others for images of more than 4096 values, got pixels"):
        Pixels().fit(torch.zeros(1, 3, 64, 64), torch.zeros(1))


def test_a_set_without_classes_cannot_be_classified():
    with pytest.raises(ValueError, match="features must be inception"):
        Classifier().fit(torch.zeros(5, 1, 8, 8, dtype=torch.uint8), torch.zeros(5))


@pytest.mark.slow
def test_inception_takes_weights_by_path_and_states_their_hash(weights):
    sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
    inception = Inception(str(weights), sha256[:8])
    inception.fit(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), torch.zeros(1))
    features, logits, predicted = inception(torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8))
    assert features.shape == (2, 2048)
    assert logits.shape == (2, 1008)
    assert predicted is None
    assert inception.protocol["sha256"] == sha256
    grey = torch.randint(0, 256, (2, 1, 8, 8), dtype=torch.uint8)
    with pytest.warns(UserWarning, match="grey images in Inception's features"):
        inception.fit(grey, torch.zeros(2))
    torch.testing.assert_close(inception(grey), inception(grey.repeat(1, 3, 1, 1)))


def test_weights_with_another_hash_are_refused_unread(tmp_path):
    path = tmp_path / "other.pth"
    path.write_bytes(b"anything")
    with pytest.raises(ValueError, match="weights must be a file whose sha256 begins with 6726825d, got .*other.pth"):
        Inception(str(path))


def test_offline_the_error_names_the_file_and_where_to_put_it(tmp_path, monkeypatch):
    from urllib.error import URLError

    def offline(*args, **kwargs):
        raise URLError("no network")

    monkeypatch.setattr("torch.hub.urlopen", offline)
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    with pytest.raises(
        FileNotFoundError, match=f"put it at {tmp_path}.*{INCEPTION_FILE}.* or give features.weights"
    ) as error:
        Inception()
    assert "\n" not in str(error.value)
