"""CIFAR-10."""

import torch
from torchvision.datasets import CIFAR10 as TorchvisionCIFAR10

from ddpm_lightning.data.base import Split
from ddpm_lightning.data.resident import LabelledImages
from ddpm_lightning.data.torchvision_set import TorchvisionDataModule


class CIFAR10(TorchvisionDataModule):
    """32x32 colour photographs of 10 classes: 50 000 to train on, 10 000 held out.  Krizhevsky (2009)."""

    source = "cifar-10-python.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html"
    destination = "cifar-10-python.tar.gz"

    def open(self, train: bool, download: bool) -> TorchvisionCIFAR10:
        return TorchvisionCIFAR10(self.root, train=train, download=download)

    def load(self, split: Split) -> LabelledImages:
        cifar = self.open(split == "train", download=False)
        return LabelledImages(
            torch.from_numpy(cifar.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(cifar.targets)
        )

    @property
    def class_names(self) -> list[str]:
        return "airplane automobile bird cat deer dog frog horse ship truck".split()
