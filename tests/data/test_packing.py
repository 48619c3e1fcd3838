"""Decoding once: what is kept, when it is made anew, and what a kill leaves."""

import json
import multiprocessing
import os
import subprocess
import sys
import time
import zipfile

import numpy as np
import pytest
from PIL import Image

from ddpm_lightning.data.packing import pack
from ddpm_lightning.data.preprocessing import CROPS, Preprocessing
from ddpm_lightning.data.sources import File, open_archive


@pytest.fixture
def sources(tmp_path):
    rng = np.random.default_rng(0)
    files = []
    for i in range(200):
        path = tmp_path / "images" / f"{i:03}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
        files.append(File(path))
    return files


def decoded(sources):
    return np.stack([np.array(Image.open(source.path)).transpose(2, 0, 1) for source in sources])


SHAPE = (3, 8, 8)


def test_rows_are_the_sources_in_order(sources, tmp_path):
    packed = pack(sources, Preprocessing(SHAPE), tmp_path / "cache")
    assert np.array_equal(packed.images, decoded(sources))
    assert packed.broken == []
    [description] = (tmp_path / "cache").glob("*.json")
    assert json.loads(description.read_text())["shape"] == [200, 3, 8, 8]


@pytest.mark.parametrize("damage", ["truncated", "longer", "no description", "foreign description", "garbage"])
def test_a_damaged_array_is_noticed_and_made_anew(sources, tmp_path, damage):
    cache = tmp_path / "cache"
    pack(sources, Preprocessing(SHAPE), cache)
    [array], [description] = cache.glob("*.npy"), cache.glob("*.json")
    content = array.read_bytes()
    if damage == "truncated":
        array.write_bytes(content[:-100])
    elif damage == "longer":
        array.write_bytes(content + b"x")
    elif damage == "no description":
        description.unlink()
    elif damage == "foreign description":
        description.write_text(json.dumps({"shape": [1], "bytes": 3}))
    else:
        array.write_bytes(b"\0" * len(content))
    assert np.array_equal(pack(sources, Preprocessing(SHAPE), cache).images, decoded(sources))


def test_each_crop_size_and_way_with_errors_has_an_array_of_its_own(sources, tmp_path):
    cache = tmp_path / "cache"
    pack(sources, Preprocessing(SHAPE), cache)
    pack(sources, Preprocessing((1, 8, 8)), cache)
    pack(sources, Preprocessing(SHAPE), cache, "skip")
    pack(sources[:-1], Preprocessing(SHAPE), cache)
    pack(sources, Preprocessing(SHAPE), cache)
    assert len(list(cache.glob("*.npy"))) == 4


def test_a_slip_in_memory_does_not_reach_the_file(sources, tmp_path):
    first = pack(sources, Preprocessing(SHAPE), tmp_path / "cache").images
    first[:] = 0
    assert np.array_equal(pack(sources, Preprocessing(SHAPE), tmp_path / "cache").images, decoded(sources))


@pytest.mark.slow
def test_a_kill_leaves_nothing_that_is_taken_for_whole(sources, tmp_path):
    """Killed after a tenth of the images; then packed to the end."""
    script = f"""
import os, time
from pathlib import Path
from ddpm_lightning.data.packing import pack
from ddpm_lightning.data.preprocessing import Preprocessing
from ddpm_lightning.data.sources import File
import ddpm_lightning.data.packing as packing
packing.CHUNK = 4
class Slow(Preprocessing):
    def __call__(self, file):
        time.sleep(0.01)
        return super().__call__(file)
files = [File(path) for path in sorted(Path({str(tmp_path / "images")!r}).iterdir())]
pack(files, Slow({SHAPE}), Path({str(tmp_path / "cache")!r}))
"""
    process = subprocess.Popen([sys.executable, "-c", script])
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not list((tmp_path / "cache").glob("*.part")):
        time.sleep(0.01)
    time.sleep(0.2)
    process.kill()
    process.wait()
    assert not list((tmp_path / "cache").glob("*.npy"))
    assert np.array_equal(pack(sources, Preprocessing(SHAPE), tmp_path / "cache").images, decoded(sources))
    assert not list((tmp_path / "cache").glob("*.part"))


def _packs(sources, folder, results):
    calls = []

    class Counting(Preprocessing):
        def __call__(self, file):
            calls.append(1)
            return super().__call__(file)

    pack(sources, Counting(SHAPE), folder)
    results.put(len(calls))


@pytest.mark.slow
def test_of_two_processes_that_start_together_one_packs(sources, tmp_path):
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    results = context.Queue()
    processes = [context.Process(target=_packs, args=(sources, tmp_path / "cache", results)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert sorted(results.get(timeout=10) for _ in processes) == [0, 200]


@pytest.mark.parametrize("crop", [name for name in CROPS if name != "none"])
def test_celeba_crops_cut_the_stated_box(tmp_path, crop):
    """Each pixel tells where it was: red its column, green its row."""
    columns, rows = np.meshgrid(np.arange(178), np.arange(218))
    Image.fromarray(np.stack([columns, rows, 0 * rows], -1).astype(np.uint8)).save(tmp_path / "x.png")
    left, top, right, bottom = CROPS[crop]
    assert right - left == bottom - top == int(crop[-3:])
    with open(tmp_path / "x.png", "rb") as file:
        out = Preprocessing((3, right - left, right - left), crop)(file)
    assert (out[0] == np.arange(left, right)).all()
    assert (out[1] == np.arange(top, bottom)[:, None]).all()


def test_a_crop_larger_than_the_image_and_an_unknown_one_are_refused(tmp_path):
    Image.new("RGB", (100, 100)).save(tmp_path / "x.png")
    with open(tmp_path / "x.png", "rb") as file, pytest.raises(ValueError, match="100x100 pixels do not hold the crop"):
        Preprocessing(SHAPE, "center178")(file)
    with pytest.raises(ValueError, match="crop must be one of none, center178, .*, got middle"):
        Preprocessing(SHAPE, "middle")


@pytest.mark.parametrize("size", [(20, 10), (10, 20), (64, 64), (9, 8), (300, 17)])
@pytest.mark.parametrize("shape", [(3, 8, 8), (3, 16, 8), (3, 8, 24)])
def test_resizing_covers_and_cuts_the_centre(tmp_path, size, shape):
    """Against Pillow, step by step: scale until the target is covered, and cut its middle."""
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    small.save(tmp_path / "x.png")
    with open(tmp_path / "x.png", "rb") as file:
        out = Preprocessing(shape)(file)
    _, height, width = shape
    scale = max(width / size[0], height / size[1])
    left, top = (size[0] - width / scale) / 2, (size[1] - height / scale) / 2
    box = (left, top, left + width / scale, top + height / scale)
    expected = np.array(small.resize((width, height), Image.Resampling.BICUBIC, box=box)).transpose(2, 0, 1)
    assert np.abs(out.astype(int) - expected).max() <= 1


def test_archives_are_read_without_unpacking_and_refused_if_broken_or_reaching_outside(sources, tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for source in sources[:5]:
            archive.write(source.path, f"in/{source.path.name}")
    members = [File(path, f"in/{source.path.name}") for source in sources[:5]]
    packed = pack(members, Preprocessing(SHAPE), tmp_path / "cache")
    assert np.array_equal(packed.images, decoded(sources[:5]))
    assert str(members[0]) == f"{path}:in/000.png"
    for name in ("../out.png", "/out.png", "in/../../out.png", "in\\..\\out.png"):
        bad = tmp_path / f"bad{abs(hash(name))}.zip"
        with zipfile.ZipFile(bad, "w") as archive:
            archive.writestr(name, b"x")
        with pytest.raises(ValueError, match="must hold files of its own folder alone"):
            open_archive(bad)
    half = tmp_path / "half.zip"
    half.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"half.zip must be a whole zip archive"):
        open_archive(half)


@pytest.mark.parametrize("seed", range(40))
def test_fuzzed_images_are_named_and_never_crash(sources, tmp_path, seed):
    """Bytes of a real file, changed, cut or doubled: either still an image, or named as broken."""
    rng = np.random.default_rng(seed)
    Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(
        tmp_path / "x", format=("JPEG", "PNG", "GIF", "BMP", "WEBP")[seed % 5]
    )
    content = bytearray((tmp_path / "x").read_bytes())
    for _ in range(rng.integers(1, 30)):
        content[rng.integers(len(content))] = rng.integers(256)
    content = content[: rng.integers(1, len(content) + 1)] if seed % 2 else content
    (tmp_path / "x").write_bytes(content)
    packed = pack([sources[0], File(tmp_path / "x")], Preprocessing(SHAPE), tmp_path / "cache", "skip")
    assert len(packed.images) == 2 - len(packed.broken)
    assert packed.broken in ([], [1])
    assert np.array_equal(packed.images[0], decoded(sources[:1])[0])
    assert os.listdir(tmp_path / "cache")


def test_packed_arrays_are_kept_apart_by_name_size_and_time(tmp_path):
    def write(name, value, side=8, seconds=0):
        Image.new("RGB", (side, side), (value, value, value)).save(tmp_path / name)  # bmp: one size for all contents
        os.utime(tmp_path / name, (seconds, seconds))

    def packed(name="a.bmp"):
        return pack([File(tmp_path / name)], Preprocessing((3, 8, 8)), tmp_path / "cache").images

    write("a.bmp", 1)
    write("b.bmp", 2)
    assert (packed() == 1).all()
    assert (packed("b.bmp") == 2).all()
    write("a.bmp", 3, seconds=1)
    assert (packed() == 3).all()  # of the same size, but newer
    write("a.bmp", 4, side=9, seconds=1)
    assert (packed() == 4).all()  # of the same time, but larger
