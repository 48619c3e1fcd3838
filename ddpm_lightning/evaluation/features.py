"""Images -> the features in which distributions of images are compared."""

import hashlib
import warnings
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from urllib.error import URLError

import numpy as np
import torch
from sklearn.neural_network import MLPClassifier
from sklearn.svm import SVC
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3

INCEPTION_FILE = URL_INCEPTION_V3.rpartition("/")[2]


class Extracted(NamedTuple):
    """Features (N, D) and class logits (N, K), float32, or None where an extractor has none; and the labels (N,) int64
    that a classifier of the training split gives, or None."""

    features: Tensor
    logits: Tensor | None = None
    predicted: Tensor | None = None


class Features(Protocol):
    """An extractor: named, with what a reader needs to get the same figures."""

    protocol: dict[str, Any]

    def fit(self, images: Tensor, labels: Tensor) -> None:
        """Learn from the training split, images (N, C, H, W) uint8, if there is something to learn."""
        ...

    def __call__(self, images: Tensor) -> Extracted:
        """Of images (B, C, H, W) uint8."""
        ...

    def to(self, device: torch.device) -> None:
        """Do the work on a device, if it can be done there."""
        ...


class Inception:
    """The Inception network of the published FID, as torch-fidelity carries it: 2048 pooled features, 1008 logits.

    ``weights`` is the path of its file, or None to download it. ``sha256`` is the file's hash, or its beginning.
    Grey images are shown as colour ones, with a warning. Raises FileNotFoundError without a file, ValueError for
    another file.
    """

    def __init__(self, weights: str | None = None, sha256: str = "6726825d") -> None:
        path = Path(weights).expanduser() if weights else Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE
        if weights and not path.is_file():
            raise FileNotFoundError(
                f"weights must be the path of {INCEPTION_FILE}, got {weights}, where there is no file"
            )
        if not path.is_file():
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                torch.hub.download_url_to_file(URL_INCEPTION_V3, str(path), hash_prefix=sha256, progress=True)
            except (URLError, OSError, RuntimeError) as error:
                raise FileNotFoundError(
                    f"weights must be the path of {INCEPTION_FILE}, which can't be downloaded ({error}):"
                    f" fetch {URL_INCEPTION_V3} elsewhere, and put it at {path} or give features.weights=its path"
                ) from error
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if len(sha256) < 8 or not found.startswith(sha256):
            raise ValueError(f"weights must be a file whose sha256 begins with {sha256}, got {path}, whose is {found}")
        torch.load(
            path, weights_only=True
        )  # raises for a file that would run code, as the library's own loading lets it
        self.extractor = FeatureExtractorInceptionV3(
            "inception", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(path)
        )
        self.protocol = {"name": "inception-2015-12-05", "layer": "2048", "sha256": found}

    def fit(self, images: Tensor, labels: Tensor) -> None:
        if images.shape[1] != 3:
            warnings.warn(
                "grey images in Inception's features: the figures compare with no published one", stacklevel=2
            )

    def to(self, device: torch.device) -> None:
        self.extractor.to(device)

    def __call__(self, images: Tensor) -> Extracted:
        device = next(self.extractor.parameters()).device
        with torch.no_grad():
            features, logits = self.extractor(images.expand(-1, 3, -1, -1).contiguous().to(device))
        return Extracted(features.cpu(), logits.cpu())


class Classifier:
    """Two classifiers trained on the training split: an MLP, whose last hidden layer gives 32 features, and an SVM.

    For sets on which Inception's features mean little. The settings were chosen for the digits, where the SVM gets
    99.3 % of the held-out images right. The MLP sees pixels in [-1, 1] (the scale of its features, and so of
    their Frechet distance, follows from that), the SVM in [0, 16], as they come with scikit-learn. Both are
    deterministic. At most 10 000 images are learned from, as the SVM's time grows with their square.
    """

    MOST = 10_000

    def __init__(self) -> None:
        self.mlp = MLPClassifier((64, 32), alpha=1e-3, random_state=0)
        self.svm = SVC(C=10, gamma=0.001)
        self.protocol: dict[str, Any] = {"name": "classifier", "layer": "32"}

    def fit(self, images: Tensor, labels: Tensor) -> None:
        # drawn, as many sets are sorted by class
        chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[: self.MOST]
        images, classes = (
            (images[chosen], labels[chosen].numpy()) if len(images) > self.MOST else (images, labels.numpy())
        )
        if len(np.unique(classes)) < 2:
            raise ValueError("features must be inception for a set without classes: there is nothing to classify")
        with threadpool_limits(1):  # for the same bits, and sooner: the matrices are small
            self.mlp.fit(self._pixels(images, -1, 1), classes)
            self.svm.fit(self._pixels(images, 0, 16), classes)
        learned = (*self.mlp.coefs_, *self.mlp.intercepts_, self.svm.support_vectors_, self.svm.dual_coef_)
        weights = b"".join(array.tobytes() for array in (*learned, self.svm.intercept_))
        self.protocol["sha256"] = hashlib.sha256(weights).hexdigest()

    def to(self, device: torch.device) -> None:
        """Small enough for the CPU."""

    def __call__(self, images: Tensor) -> Extracted:
        hidden = torch.from_numpy(self._pixels(images, -1, 1))
        *layers, last = [
            (torch.from_numpy(w), torch.from_numpy(b))
            for w, b in zip(self.mlp.coefs_, self.mlp.intercepts_, strict=True)
        ]
        for weight, bias in layers:
            hidden = torch.relu(hidden @ weight + bias)
        predicted = torch.from_numpy(self.svm.predict(self._pixels(images, 0, 16)))
        return Extracted(hidden.float(), (hidden @ last[0] + last[1]).float(), predicted)

    @staticmethod
    def _pixels(images: Tensor, low: float, high: float) -> np.ndarray:
        """uint8 (N, C, H, W) -> float64 (N, C H W) in [low, high]."""
        return images.flatten(1).double().mul((high - low) / 255).add(low).numpy()


class Pixels:
    """The pixels themselves, in [-1, 1]: no learned features, so distances are of colours and places alone."""

    MOST = 4096  # values of an image: the distance takes time with their cube

    def __init__(self) -> None:
        self.protocol: dict[str, Any] = {"name": "pixels", "layer": "in [-1, 1]", "sha256": ""}

    def fit(self, images: Tensor, labels: Tensor) -> None:
        if images[0].numel() > self.MOST:
            raise ValueError(f"features must be others for images of more than {self.MOST} values, got pixels")

    def to(self, device: torch.device) -> None:
        """Nothing to compute."""

    def __call__(self, images: Tensor) -> Extracted:
        return Extracted(images.flatten(1).float().cpu() / 127.5 - 1)
