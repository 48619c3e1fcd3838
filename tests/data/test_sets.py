"""Data sets from small files in their real formats, made here."""

import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from ddpm_lightning.data.cifar10 import CIFAR10
from ddpm_lightning.data.digits import Digits
from ddpm_lightning.data.image_folder import ImageFolder
from ddpm_lightning.data.mnist import MNIST
from ddpm_lightning.data.preprocessing import Preprocessing
from ddpm_lightning.images import to_uint8

SETTINGS = {"batch_size": 4, "num_classes": 10}


def digits(**kwargs):
    return Digits(root="unused", **{"image_size": 8, "channels": 1, **SETTINGS, **kwargs})


def test_digits_are_scikit_learns_with_a_stratified_held_out_part():
    data = digits()
    train, val = data.split("train"), data.split("val")
    assert (len(train.images), len(val.images)) == (1347, 450)
    assert val.labels.bincount().min() >= 43
    from sklearn.datasets import load_digits

    real = {tuple(v) for v in (load_digits().images.reshape(-1, 64) * 255 / 16).round().astype(np.uint8).tolist()}
    assert {tuple(v) for v in torch.cat([train.images, val.images]).flatten(1).tolist()} == real
    assert not Path("unused").exists()


def test_flips_are_for_training_alone_and_as_configured():
    for flip in (True, False):
        data = digits(horizontal_flip=flip)
        assert data.train_dataloader().flip is flip
        seen = torch.cat([images for images, _ in data.val_dataloader()])
        assert torch.equal(to_uint8(seen), data.split("val").images)


def write_idx(path, array):
    header = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(header + array.tobytes())


def test_mnist_files_are_read_and_padded(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, count in (("train", 6), ("t10k", 5)):
        write_idx(raw / f"{name}-images-idx3-ubyte", rng.integers(1, 256, (count, 28, 28), dtype=np.uint8))
        write_idx(raw / f"{name}-labels-idx1-ubyte", np.arange(count, dtype=np.uint8))
    data = MNIST(root=str(tmp_path), image_size=32, channels=1, **SETTINGS)
    data.prepare_data()
    images, labels = data.split("train")
    assert images.shape == (6, 1, 32, 32)
    assert labels.tolist() == list(range(6))
    assert images[:, :, 2:-2, 2:-2].min() > 0
    assert images.sum() == images[:, :, 2:-2, 2:-2].sum()
    assert len(data.split("val").images) == 5


def fake_cifar(root, monkeypatch):
    """Six batch files of 5 images in the official layout; torchvision's checksums replaced by theirs."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (6, 5, 3072), dtype=np.uint8)
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    for name, batch in zip(names, pixels, strict=True):
        (folder / name).write_bytes(pickle.dumps({"data": batch, "labels": [0, 1, 2, 3, 9]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": CIFAR10.class_names.fget(None)}))
    import hashlib

    def md5(name):
        return hashlib.md5((folder / name).read_bytes()).hexdigest()

    original = torchvision.datasets.CIFAR10
    monkeypatch.setattr(original, "train_list", [[name, md5(name)] for name in names[:5]])
    monkeypatch.setattr(original, "test_list", [[names[5], md5(names[5])]])
    monkeypatch.setattr(original, "meta", {**original.meta, "md5": md5("batches.meta")})
    return pixels


def test_cifar10_files_are_read_in_order(tmp_path, monkeypatch):
    pixels = fake_cifar(tmp_path, monkeypatch)
    data = CIFAR10(root=str(tmp_path), image_size=32, channels=3, **SETTINGS)
    data.prepare_data()
    images, labels = data.split("train")
    assert torch.equal(images, torch.from_numpy(pixels[:5].reshape(25, 3, 32, 32)))
    assert labels.tolist() == [0, 1, 2, 3, 9] * 5
    assert data.class_names[9] == "truck"


def test_a_broken_cifar10_is_noticed_and_taken_from_the_archive(tmp_path, monkeypatch):
    fake_cifar(tmp_path, monkeypatch)
    folder = tmp_path / "cifar-10-batches-py"
    archive = tmp_path / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, folder.name)
    import hashlib

    monkeypatch.setattr(torchvision.datasets.CIFAR10, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    (folder / "data_batch_2").write_bytes(b"broken")
    data = CIFAR10(root=str(tmp_path), image_size=32, channels=3, **SETTINGS)
    data.prepare_data()
    assert len(data.split("train").images) == 25


@pytest.mark.parametrize(("make", "file"), [(CIFAR10, "cifar-10-python.tar.gz"), (MNIST, "MNIST/raw")])
def test_without_files_and_network_the_error_says_what_goes_where(tmp_path, monkeypatch, make, file):
    from urllib.error import URLError

    def offline(*args, **kwargs):
        raise URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", offline)
    data = make(root=str(tmp_path), image_size=32, channels=3 if make is CIFAR10 else 1, **SETTINGS)
    with pytest.raises(FileNotFoundError, match=f"put it at {tmp_path / file}") as error:
        data.prepare_data()
    assert "\n" not in str(error.value)


def save(path, colour, size=(20, 10), mode="RGB", **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path, **kwargs)


def folder(root, **kwargs):
    return ImageFolder(root=str(root), **{"image_size": 8, "channels": 3, "batch_size": 2, **kwargs})


def test_class_folders_are_labels_and_hidden_or_foreign_files_are_passed_over(tmp_path):
    for i in range(4):
        save(tmp_path / "cats" / f"{i}.png", (255, 0, 0))
        save(tmp_path / "dogs" / f"{i}.jpg", (0, 0, 255))
    save(tmp_path / "cats" / ".hidden.png", (9, 9, 9))
    (tmp_path / "cats" / "notes.txt").write_text("not an image")
    data = folder(tmp_path, val_fraction=0.25)
    assert data.class_names == ["cats", "dogs"]
    assert data.num_classes == 2
    train, val = data.split("train"), data.split("val")
    assert (len(train.images), len(val.images)) == (6, 2)
    for images, labels in (train, val):
        for image, label in zip(images, labels, strict=True):
            assert (image[0].float().mean() > 200) == (label == 0)


def test_train_and_test_folders_are_the_splits(tmp_path):
    for split, count in (("train", 3), ("test", 2)):
        for i in range(count):
            save(tmp_path / split / "a" / f"{i}.png", i)
    data = folder(tmp_path)
    assert (len(data.split("train").images), len(data.split("val").images)) == (3, 2)


def test_images_without_folders_are_unlabelled(tmp_path):
    for i in range(3):
        save(tmp_path / f"{i}.png", i)
    data = folder(tmp_path)
    assert data.num_classes is None
    assert data.class_names is None
    assert data.split("train").labels.tolist() == [0, 0]


def test_pixels_survive_at_their_own_size(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    for i in range(2):
        Image.fromarray(pixels[i]).save(tmp_path / f"{i}.png")
    data = folder(tmp_path, val_fraction=0.5)
    both = torch.cat([data.split("train").images, data.split("val").images])
    assert {tuple(image.flatten().tolist()) for image in both} == {
        tuple(image.transpose(2, 0, 1).flatten().tolist()) for image in pixels
    }


def pixels(path, shape, crop="none"):
    with open(path, "rb") as file:
        return Preprocessing(shape, crop)(file)


def test_images_of_every_kind_arrive_as_a_user_expects(tmp_path):
    wide = Image.new("RGB", (30, 10), (0, 0, 255))
    wide.paste((255, 0, 0), (10, 0, 20, 10))  # the middle third
    wide.save(tmp_path / "0_centre.png")
    save(tmp_path / "1_grey.png", 77, mode="L")
    save(tmp_path / "2_clear.png", (0, 0, 0, 0), mode="RGBA")
    Image.fromarray(np.full((10, 10), 257 * 99, dtype=np.uint16)).save(tmp_path / "3_deep.png")
    save(tmp_path / "4_palette.gif", (10, 200, 30))
    turned = Image.new("RGB", (10, 10), (0, 0, 0))
    turned.paste((255, 255, 255), (0, 0, 10, 5))  # white above
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise: white at the right
    turned.save(tmp_path / "5_turned.png", exif=exif)
    read = [pixels(path, (3, 8, 8)).astype(int) for path in sorted(tmp_path.iterdir())]
    assert (read[0][:, :, 1:-1] - np.array([255, 0, 0])[:, None, None] == 0).all()
    assert (read[1] == 77).all()
    assert (read[2] == 255).all()
    assert (read[3] == 99).all()
    assert np.abs(read[4] - np.array([10, 200, 30])[:, None, None]).max() <= 1
    assert (read[5][:, :, 5:] == 255).all()
    assert (read[5][:, :, :3] == 0).all()
    assert pixels(tmp_path / "1_grey.png", (1, 8, 16)).shape == (1, 8, 16)


def test_broken_images_are_named_and_nothing_is_left_behind(tmp_path):
    for i in range(3):
        save(tmp_path / f"{i}.png", i)
    (tmp_path / "3.png").write_bytes((tmp_path / "0.png").read_bytes()[:40])
    (tmp_path / "4.jpg").write_bytes(b"no image")
    with pytest.raises(ValueError, match="on_error must be skip to go on without . broken images") as error:
        [folder(tmp_path, val_fraction=0.01).split(split) for split in ("train", "val")]
    assert "3.png" in str(error.value) or "4.jpg" in str(error.value)
    assert {path.suffix for path in (tmp_path / ".packed").iterdir()} <= {".lock"}


def test_broken_images_can_be_left_out_and_are_counted(tmp_path, capsys):
    for i in range(5):
        save(tmp_path / "train" / "ab"[i % 2] / f"{i}.png", (i, i, i), size=(8, 8))
    save(tmp_path / "val" / "a" / "0.png", 9)
    save(tmp_path / "val" / "b" / "0.png", 9)
    (tmp_path / "train" / "b" / "1.png").write_bytes(b"broken")
    for _ in range(2):  # decoded, then found
        train = folder(tmp_path, on_error="skip").split("train")
        assert train.images[:, 0, 0, 0].tolist() == [0, 2, 4, 3]
        assert train.labels.tolist() == [0, 0, 0, 1]
        assert "1 of 5 images of the train split are broken, and left out" in capsys.readouterr().out


def test_a_second_start_reads_the_packed_array_and_a_changed_file_makes_a_new_one(tmp_path, monkeypatch):
    for i in range(4):
        save(tmp_path / f"{i}.png", (i, i, i), size=(8, 8))
    first = folder(tmp_path).split("train").images
    packed = set((tmp_path / ".packed").glob("*.npy"))
    monkeypatch.setattr(Preprocessing, "__call__", None)  # would fail if it were called
    assert torch.equal(folder(tmp_path).split("train").images, first)
    monkeypatch.undo()
    for i in range(4):
        save(tmp_path / f"{i}.png", (200, i, i), size=(8, 8))
    assert (folder(tmp_path).split("train").images[:, 0] == 200).all()
    assert set((tmp_path / ".packed").glob("*.npy")) > packed


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: folder(root / "none"), "root must be a folder of images"),
        (lambda root: folder(root, val_fraction=0.0), "val_fraction must lie in"),
        (lambda root: folder(root, num_classes=3), "num_classes must be null, or 2"),
        (lambda root: folder(root, image_size=4), r"image_size must lie in \[8, 256\], got 4"),
        (lambda root: folder(root, channels=2), "channels must be 1 or 3, got 2"),
        (lambda root: folder(root, batch_size=0), "batch_size must be at least 1, got 0"),
        (lambda root: folder(root).split("train"), "root must hold images of the train split, found none"),
        (lambda root: digits(image_size=16).split("val"), "image_size and channels must be those of the set"),
        (lambda root: digits(num_classes=5).split("val"), "num_classes must be above the largest label, 9, got 5"),
    ],
)
def test_impossible_settings_are_refused(tmp_path, make, message):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        make(tmp_path)
