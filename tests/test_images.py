import pytest
import torch
from PIL import Image

from ddpm_lightning.data.resident import scale
from ddpm_lightning.images import grid, save_png, to_uint8, to_unit


def test_every_byte_survives_the_way_to_the_network_and_back():
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(scale(every)), every)


def test_bytes_are_rounded_not_truncated_and_clamped():
    steps = torch.tensor([-2.0, -1.0, -1 + 0.9 / 127.5, 0.0, 1.0, 3.0])
    assert to_uint8(steps).tolist() == [0, 0, 1, 128, 255, 255]
    assert to_unit(torch.tensor([-2.0, 0.0, 2.0])).tolist() == [0.0, 0.5, 1.0]


def test_grids_enlarge_small_images_and_keep_their_order():
    images = torch.arange(6, dtype=torch.uint8)[:, None, None, None].expand(6, 1, 8, 8)
    picture = grid(images, columns=3)
    assert picture.shape == (3, 2 + 2 * 50, 2 + 3 * 50)
    assert [int(picture[0, 27 + 50 * r, 27 + 50 * c]) for r in range(2) for c in range(3)] == list(range(6))


def test_png_files_hold_the_very_pixels(tmp_path):
    for channels in (1, 3):
        image = torch.randint(0, 256, (channels, 5, 7), dtype=torch.uint8)
        path = tmp_path / "deep" / f"{channels}.png"
        save_png(image, path)
        read = torch.from_numpy(__import__("numpy").array(Image.open(path)))
        assert torch.equal(read.view(5, 7, channels).permute(2, 0, 1), image)
    assert not list(tmp_path.rglob("*.part"))


def test_an_interrupted_picture_leaves_the_old_file_whole(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    save_png(torch.zeros(1, 5, 7, dtype=torch.uint8), path)
    before = path.read_bytes()

    def half(image, file, **kwargs):
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", half)
    with pytest.raises(OSError, match="disk full"):
        save_png(torch.ones(1, 5, 7, dtype=torch.uint8), path)
    assert path.read_bytes() == before
