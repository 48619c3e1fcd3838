"""MNIST, padded to 32x32."""

import torch.nn.functional as F
from torchvision.datasets import MNIST as TorchvisionMNIST

from ddpm_lightning.data.base import Split
from ddpm_lightning.data.resident import LabelledImages
from ddpm_lightning.data.torchvision_set import TorchvisionDataModule


class MNIST(TorchvisionDataModule):
    """28x28 grey digits of 10 classes, padded with black to 32x32: 60 000 to train on, 10 000 held out.

    LeCun et al. (1998).
    """

    source = "train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz and the two t10k files of MNIST"
    destination = "MNIST/raw"

    def open(self, train: bool, download: bool) -> TorchvisionMNIST:
        return TorchvisionMNIST(self.root, train=train, download=download)

    def load(self, split: Split) -> LabelledImages:
        mnist = self.open(split == "train", download=False)
        return LabelledImages(F.pad(mnist.data[:, None], (2, 2, 2, 2)), mnist.targets.long())
