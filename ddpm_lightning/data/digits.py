"""The 1 797 real 8x8 digits that come with scikit-learn: no download."""

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from ddpm_lightning.data.base import ImageDataModule, Split
from ddpm_lightning.data.resident import LabelledImages

HELD_OUT = 450


class Digits(ImageDataModule):
    """8x8 grey digits of 10 classes, 1 347 to train on and 450 held out, stratified.  Alpaydin & Kaynak (1998), UCI."""

    needs_root = False

    def load(self, split: Split) -> LabelledImages:
        digits = load_digits()
        # 17 grey levels 0..16 -> 0..255
        images = torch.from_numpy(digits.images).mul(255 / 16).round().to(torch.uint8)[:, None]
        labels = torch.from_numpy(digits.target).long()
        train, val = train_test_split(range(len(labels)), test_size=HELD_OUT, stratify=digits.target, random_state=0)
        chosen = torch.tensor(train if split == "train" else val)
        return LabelledImages(images[chosen], labels[chosen])
