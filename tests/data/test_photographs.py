"""Tiny ImageNet and CelebA from small files in their official layouts."""

import hashlib
import io
import sys
import types
import zipfile

import numpy as np
import pytest
from PIL import Image

from ddpm_lightning.data.celeba import CelebA
from ddpm_lightning.data.celeba_hf import CelebAHub
from ddpm_lightning.data.tiny_imagenet import TinyImageNet

WNIDS = ("n02", "n01")  # not in alphabetical order: labels follow the list


def jpeg(value, size=(64, 64)):
    content = io.BytesIO()
    Image.new("RGB", size, (value, value, value)).save(content, "JPEG")
    return content.getvalue()


def tiny_files():
    files = {"wnids.txt": "\n".join(WNIDS).encode(), "words.txt": b"n01\tgoldfish, carp\nn02\tteapot\nn03\tother\n"}
    for label, wnid in enumerate(WNIDS):
        for i in range(3):
            files[f"train/{wnid}/images/{wnid}_{i}.JPEG"] = jpeg(100 * label + 20 * i)
        files[f"train/{wnid}/{wnid}_boxes.txt"] = b"not an image"
    for i in range(4):
        files[f"val/images/val_{i}.JPEG"] = jpeg(40 * i)
    files["val/val_annotations.txt"] = b"".join(
        b"val_%d.JPEG\t%s\t0\t0\t63\t63\n" % (i, WNIDS[i % 2].encode()) for i in range(4)
    )
    return files


def write_zip(path, files):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(f"tiny-imagenet-200/{name}", content)
    return path


def write_folder(path, files):
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def tiny(root, **kwargs):
    return TinyImageNet(root=str(root), **{"image_size": 64, "channels": 3, "batch_size": 2, **kwargs})


@pytest.mark.parametrize("form", ["zip", "folder"])
def test_tiny_imagenet_is_read_by_class_folders_and_annotations(tmp_path, form):
    if form == "zip":
        write_zip(tmp_path / "tiny-imagenet-200.zip", tiny_files())
    else:
        write_folder(tmp_path / "tiny-imagenet-200", tiny_files())
    data = tiny(tmp_path)
    data.prepare_data()
    assert data.num_classes == 2
    assert data.class_names == ["teapot", "goldfish"]
    train, val = data.split("train"), data.split("val")
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert train.images[:, 0, 5, 5].tolist() == [0, 20, 40, 100, 120, 140]
    assert val.labels.tolist() == [0, 1, 0, 1]
    assert val.images[:, 0, 5, 5].tolist() == [0, 40, 80, 120]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train/n01/images/": None}, "must hold images in train/n01/images, found none"),
        ({"val/val_annotations.txt": b"val_0.JPEG\tn02\n\tn02\n"}, "line 2: must name .* got image"),
        ({"val/val_annotations.txt": b"val_0.JPEG\tn99\t1\n"}, "line 1: must name .* got class n99"),
        ({"val/val_annotations.txt": b"val_7.JPEG\tn02\t1\n"}, "line 1: must name .* got image val_7.JPEG"),
        ({"val/val_annotations.txt": b"no tabs\n"}, r"line 1: must name .* got class \(none\)"),
        ({"val/val_annotations.txt": None}, "must hold val/val_annotations.txt"),
        ({"wnids.txt": None}, "must hold wnids.txt"),
    ],
)
@pytest.mark.parametrize("form", ["zip", "folder"])
def test_a_wrong_archive_is_refused_in_one_line_with_nothing_left_behind(tmp_path, change, message, form):
    files = tiny_files()
    for name, content in change.items():
        files = {n: c for n, c in files.items() if not n.startswith(name)}
        if content is not None:
            files[name] = content
    write = write_zip if form == "zip" else write_folder
    path = write(tmp_path / ("a.zip" if form == "zip" else "a"), files)

    def read():
        data = tiny(tmp_path / "root", archive=str(path))
        data.prepare_data()
        return data.split("train"), data.split("val")

    with pytest.raises(ValueError, match=message) as error:
        read()
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "root").rglob("*.part"))


def test_the_archive_is_downloaded_once_and_checked(tmp_path, monkeypatch):
    content = write_zip(tmp_path / "served.zip", tiny_files()).read_bytes()
    calls = []

    def download(url, target, progress):
        calls.append(url)
        with open(target, "wb") as file:
            file.write(content)

    monkeypatch.setattr("torch.hub.download_url_to_file", download)
    root = tmp_path / "root"
    for md5, good in (("0" * 32, False), (hashlib.md5(content).hexdigest(), True)):
        data = tiny(root, md5=md5)
        if good:
            data.prepare_data()
        else:
            with pytest.raises(FileNotFoundError, match=f"its md5 is .*, not {md5}.*put it at .*tiny-imagenet-200.zip"):
                data.prepare_data()
            assert not [path for path in root.iterdir() if path.name != ".tiny-imagenet-200.lock"]
    assert len(data.split("train").images) == 6
    tiny(root).prepare_data()
    assert len(calls) == 2


@pytest.mark.parametrize("seed", range(60))
def test_fuzzed_archives_are_refused_in_one_line_or_read(tmp_path, seed):
    """Bytes changed anywhere, often in the directory at the end, and sometimes cut."""
    rng = np.random.default_rng(seed)
    path = write_zip(tmp_path / "a.zip", tiny_files())
    content = bytearray(path.read_bytes())
    start = 0 if seed % 3 else int(0.85 * len(content))
    for _ in range(rng.integers(1, 20)):
        content[rng.integers(start, len(content))] = rng.integers(256)
    path.write_bytes(content[: rng.integers(1, len(content))] if seed % 5 == 4 else content)
    said = ""
    try:
        data = tiny(tmp_path / "root", archive=str(path))
        for images, labels in (data.split("train"), data.split("val")):
            assert len(images) == len(labels) > 0
    except ValueError as error:
        said = str(error)
    assert "\n" not in said
    assert not list((tmp_path / "root").rglob("*.part"))


def test_classes_that_the_archive_lacks_are_refused(tmp_path):
    path = write_zip(tmp_path / "a.zip", tiny_files())
    with pytest.raises(ValueError, match=r"num_classes must be null, or 2 as in wnids.txt, got 200"):
        tiny(tmp_path, archive=str(path), num_classes=200)
    with pytest.raises(FileNotFoundError, match="archive must be a zip archive or folder .* exists, got nowhere"):
        tiny(tmp_path, archive="nowhere")


def celeba_files(root, count=9):
    folder = root / "celeba"
    names = [f"{i:06d}.jpg" for i in range(1, count + 1)]
    images = {f"img_align_celeba/{name}": jpeg(10 * i, (178, 218)) for i, name in enumerate(names)}
    write_folder(folder, images)
    (folder / "list_eval_partition.txt").write_text("".join(f"{n} {i // 4}\n" for i, n in enumerate(names)))
    rows = "".join(f"{n} {'1' if i % 3 == 0 else '-1'} -1\n" for i, n in enumerate(names))
    (folder / "list_attr_celeba.txt").write_text(f"{count}\nSmiling Young\n{rows}")
    return root


def celeba(root, **kwargs):
    settings = {"image_size": 64, "channels": 3, "batch_size": 2, "crop": "center178", "split_sizes": (4, 4, 1)}
    return CelebA(root=str(root), **{**settings, **kwargs})


def test_celeba_is_read_by_its_partition(tmp_path):
    data = celeba(celeba_files(tmp_path))
    data.prepare_data()
    assert data.split("train").images[:, 0, 9, 9].tolist() == [0, 10, 20, 30]
    assert data.split("val").images[:, 0, 9, 9].tolist() == [40, 50, 60, 70]
    assert data.num_classes is None
    assert data.split("train").labels.tolist() == [0, 0, 0, 0]


def test_an_attribute_makes_two_classes(tmp_path):
    data = celeba(celeba_files(tmp_path), attribute="Smiling")
    assert data.class_names == ["not Smiling", "Smiling"]
    assert data.split("train").labels.tolist() == [1, 0, 0, 1]
    with pytest.raises(ValueError, match="attribute must be one of Smiling, Young, got Bald"):
        celeba(tmp_path, attribute="Bald").split("train")
    with pytest.raises(ValueError, match="num_classes must be null or 2, got 40"):
        celeba(tmp_path, attribute="Smiling", num_classes=40)


def test_official_counts_and_missing_images_are_checked(tmp_path):
    root = celeba_files(tmp_path)
    with pytest.raises(
        ValueError, match=r"split_sizes must be null or \[4, 4, 1\], the counts .* got \[162770, 19867, 19962\]"
    ):
        celeba(root, split_sizes=(162_770, 19_867, 19_962)).split("train")
    (root / "celeba" / "img_align_celeba" / "000002.jpg").unlink()
    with pytest.raises(ValueError, match="lacks 1 of the 4 images of the train split: 000002.jpg"):
        celeba(root).split("train")


def test_without_celeba_and_network_the_error_says_what_goes_where(tmp_path, monkeypatch):
    def offline(*args, **kwargs):
        raise RuntimeError("no network")

    monkeypatch.setattr("ddpm_lightning.data.celeba.TorchvisionCelebA", offline)
    with pytest.raises(
        FileNotFoundError, match=r"lacks celeba/img_align_celeba, celeba/list_eval_partition.txt.*unpack"
    ):
        celeba(tmp_path).prepare_data()


class Table:
    """What celeba_hf asks of a datasets.Dataset."""

    column_names = ("image", "celeb_id", "Smiling")
    _fingerprint = "f00"
    split = "train"

    def __len__(self):
        return 3

    def __getitem__(self, key):
        return [True, False, True] if key == "Smiling" else {"image": {"bytes": jpeg(50 * key, (178, 218))}}

    def cast_column(self, name, feature):
        assert (name, feature) == ("image", "undecoded")
        return self


def test_celeba_from_the_hub(tmp_path, monkeypatch):
    asked = []
    fake = types.ModuleType("datasets")
    fake.load_dataset = lambda name, split, cache_dir: asked.append((name, split)) or Table()
    fake.Image = lambda decode: "undecoded" if decode is False else "decoded"
    monkeypatch.setitem(sys.modules, "datasets", fake)
    settings = {"root": str(tmp_path), "image_size": 64, "channels": 3, "batch_size": 1, "crop": "center178"}
    data = CelebAHub(attribute="Smiling", **settings)
    assert data.split("train").images[:, 0, 9, 9].tolist() == [0, 50, 100]
    assert data.split("train").labels.tolist() == [1, 0, 1]
    assert asked == [("flwrlabs/celeba", "train")]
    with pytest.raises(ValueError, match="attribute must be one of Smiling, got Bald"):
        CelebAHub(attribute="Bald", **settings).split("train")

    def offline(*args, **kwargs):
        raise ConnectionError("no network")

    fake.load_dataset = offline
    with pytest.raises(FileNotFoundError, match=r"repository=flwrlabs/celeba can't be fetched .*no network"):
        CelebAHub(**settings).split("train")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match="data must be celeba, or the extra installed"):
        CelebAHub(**settings).split("train")


def test_fingerprints_follow_the_pixels(tmp_path):
    first = celeba(celeba_files(tmp_path / "a"))
    second = celeba(celeba_files(tmp_path / "b"))
    cropped = celeba(tmp_path / "b", crop="box128")
    assert first.fingerprint("train") == second.fingerprint("train") != first.fingerprint("val")
    path = tmp_path / "b" / "celeba" / "img_align_celeba" / "000001.jpg"
    path.write_bytes(jpeg(99, (178, 218)))
    assert celeba(tmp_path / "b").fingerprint("train") != first.fingerprint("train")
    assert isinstance(cropped.fingerprint("train"), str)
    assert np.array_equal(celeba(tmp_path / "b").split("train").images[0, :, 5, 5], [99, 99, 99])
