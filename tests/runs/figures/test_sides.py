import hashlib

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_lightning.data.digits import Digits
from ddpm_lightning.runs.figures.given import Folder, array_of, given_side
from ddpm_lightning.runs.refusal import Refusal


def picture(path, kind="RGB", size=(6, 4), seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = {"RGB": (3,), "RGBA": (4,), "L": (), "P": ()}[kind]
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], *channels), dtype=np.uint8)
    image = Image.fromarray(pixels, "L" if kind == "P" else kind)
    (image.convert("P") if kind == "P" else image).save(path)
    return pixels


def nothing():
    raise AssertionError("no data set is needed")


def test_a_folders_images_are_those_of_its_files_in_their_order(tmp_path):
    pixels = [picture(tmp_path / f"{i}.png", seed=i) for i in range(3)]
    picture(tmp_path / ".hidden" / "x.png", size=(9, 9))
    picture(tmp_path / "grid.png", size=(9, 9))  # as mode=samples leaves it beside the samples
    (tmp_path / "notes.txt").write_text("no image")
    side = given_side("images", str(tmp_path), nothing)
    assert side.shape == (3, 4, 6)
    assert side.labels is None
    np.testing.assert_array_equal(side.images([2, 0]).permute(0, 2, 3, 1), np.stack([pixels[2], pixels[0]]))
    before = side.described
    assert before.items() >= {"set": tmp_path.name, "count": 3, "shape": [3, 4, 6], "format": "png"}.items()
    assert Folder("images", tmp_path).described == before
    picture(tmp_path / "1.png", seed=9)
    assert Folder("images", tmp_path).described["sha256"] != before["sha256"]


def test_class_folders_are_labels_and_grey_and_palette_images_are_read(tmp_path):
    grey = picture(tmp_path / "b" / "0.png", kind="L")
    picture(tmp_path / "a" / "1.png", kind="L")
    side = Folder("images", tmp_path)
    assert side.labels == [0, 1]
    assert side.class_names == ["a", "b"]
    np.testing.assert_array_equal(side.images([1])[0, 0], grey)
    palette = picture(tmp_path / "c" / "d" / "0.png", kind="P")
    images = Folder("images", tmp_path / "c").images([0])
    np.testing.assert_array_equal(images[0], np.stack([palette] * 3))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "must hold images, has none"),
        ([("a.png", "RGB", (6, 4)), ("b.png", "RGB", (6, 4)), ("c.png", "RGB", (4, 6))],
         r"must hold images of one size, has 2 of 3x4x6, 1 of 3x6x4, such as c.png"),
        ([("a.png", "RGB", (6, 4)), ("b.png", "L", (6, 4))], "of one size, has 1 of 3x4x6, 1 of 1x4x6"),
        ([("a.png", "RGBA", (6, 4))], "must hold 8-bit images, grey or RGB; .*a.png is of kind RGBA"),
    ],
)  # fmt: skip
def test_a_folder_that_is_no_set_is_refused(tmp_path, files, message):
    for name, kind, size in files:
        picture(tmp_path / name, kind, size)
    with pytest.raises(Refusal, match=message):
        Folder("images", tmp_path)


def test_a_broken_file_is_named(tmp_path):
    picture(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"nothing")
    with pytest.raises(Refusal, match="reference: .*b.png can't be read as an image"):
        Folder("reference", tmp_path)
    picture(tmp_path / "b.png", size=(6, 4))
    file = (tmp_path / "b.png").read_bytes()
    side = Folder("reference", tmp_path)
    (tmp_path / "b.png").write_bytes(file[: len(file) // 2])
    with pytest.raises(Refusal, match="reference: .*b.png can't be read as an image"):
        side.images([1])


@pytest.mark.parametrize("names", [("images", "labels"), ("arr_0", "arr_1")])
def test_an_array_is_read_as_it_is_written_here_and_elsewhere(tmp_path, names):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), dtype=np.uint8)
    np.savez(tmp_path / "x.npz", **{names[0]: pixels, names[1]: np.array([3, 1, 2, 0, 1])})
    side = given_side("images", str(tmp_path / "x.npz"), nothing)
    np.testing.assert_array_equal(side.images([4]).permute(0, 2, 3, 1), pixels[4:])
    assert side.labels == [3, 1, 2, 0, 1]
    assert side.described["sha256"] == hashlib.sha256(pixels.tobytes()).hexdigest()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"images": np.zeros((2, 3, 4, 4), np.uint8)}, r"uint8 \(N, H, W, 1 or 3\), has uint8 \(2, 3, 4, 4\)"),
        ({"images": np.zeros((2, 4, 4, 3), np.float32)}, r"has float32 \(2, 4, 4, 3\)"),
        ({"pictures": np.zeros((2, 4, 4, 3), np.uint8)}, "has none of these"),
        (None, "must be an .npz file of arrays"),
    ],
)
def test_arrays_of_anything_else_are_refused(tmp_path, content, message):
    with open(tmp_path / "x.npz", "wb") as file:
        np.save(file, np.zeros(3)) if content is None else np.savez(file, **content)
    with pytest.raises(Refusal, match=message):
        array_of("images", tmp_path / "x.npz")


def test_a_cut_archive_is_refused_and_labels_that_are_words_are_none(tmp_path):
    pixels = np.zeros((5, 4, 6, 3), np.uint8)
    np.savez(tmp_path / "x.npz", images=pixels, labels=np.array(list("abcde")))
    assert array_of("images", tmp_path / "x.npz").labels is None
    content = (tmp_path / "x.npz").read_bytes()
    (tmp_path / "x.npz").write_bytes(content[: len(content) // 2])
    with pytest.raises(Refusal, match="images=.*x.npz: must be an .npz file of arrays"):
        array_of("images", tmp_path / "x.npz")


def test_splits_are_what_the_network_is_trained_on():
    data = Digits(root="unused", image_size=8, channels=1, batch_size=64, num_classes=10, horizontal_flip=True)
    side = given_side("reference", "val", lambda: data)
    assert torch.equal(side.images([7, 3]), data.split("val").images[[7, 3]])
    assert side.labels == data.split("val").labels.tolist()
    assert side.described["set"] == "Digits val"
    with pytest.raises(Refusal, match="reference=test: must be train, val, a folder of images, or an .npz file"):
        given_side("reference", "test", nothing)
