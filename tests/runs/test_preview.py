import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_lightning.data.digits import Digits
from ddpm_lightning.runs.preview import batch, preview
from ddpm_lightning.runs.refusal import Refusal


def test_a_preview_writes_pictures_and_prints_counts(configure, tmp_path, capsys):
    preview(configure(f"output_dir={tmp_path / 'out'}", "num_images=12", command="preview"))
    out = capsys.readouterr().out
    assert "1x8x8, train sha256" in out
    assert "train 1347 images" in out
    assert "0 133, 1 136" in out
    for name in ("images.png", "values.png"):
        assert np.array(Image.open(tmp_path / "out" / name)).std() > 1


def test_the_pictures_are_those_of_the_training_loader():
    def digits(batch_size):
        return Digits(root="unused", image_size=8, channels=1, batch_size=batch_size, num_classes=10)

    images, labels = batch(digits(64), 12)
    expected, expected_labels = next(iter(digits(12).train_dataloader()))
    assert torch.equal(images, expected)
    assert torch.equal(labels, expected_labels)
    assert images.min() >= -1


def test_mistakes_are_refused(configure):
    with pytest.raises(Refusal, match="num_images=0: must be at least 1"):
        preview(configure("num_images=0", command="preview"))
    with pytest.raises(Refusal, match="data.root must be a folder of images, got nowhere"):
        preview(configure("data=image_folder", "data.root=nowhere", command="preview"))
