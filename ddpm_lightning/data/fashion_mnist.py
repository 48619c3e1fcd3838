"""Fashion-MNIST, padded to 32x32."""

from torchvision.datasets import FashionMNIST as TorchvisionFashionMNIST

from ddpm_lightning.data.mnist import MNIST


class FashionMNIST(MNIST):
    """28x28 grey garments of 10 classes, padded with black to 32x32: 60 000 to train on, 10 000 held out.

    Xiao et al. (2017).
    """

    source = "train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz and the two t10k files of Fashion-MNIST"
    destination = "FashionMNIST/raw"

    def open(self, train: bool, download: bool) -> TorchvisionFashionMNIST:
        return TorchvisionFashionMNIST(self.root, train=train, download=download)

    @property
    def class_names(self) -> list[str]:
        return "t-shirt trouser pullover dress coat sandal shirt sneaker bag boot".split()
