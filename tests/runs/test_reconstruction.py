"""mode=reconstruction: PSNR and SSIM by second implementations, and of denoisers whose error is known."""

import csv
import json

import numpy as np
import pytest
import torch
from conftest import GaussianDenoiser
from hydra import compose, initialize_config_dir
from PIL import Image
from scipy.ndimage import correlate1d

import ddpm_lightning.runs.figures.reconstruction as module
from ddpm_lightning.data.digits import Digits
from ddpm_lightning.data.resident import LabelledImages
from ddpm_lightning.runs.evaluate import evaluate
from ddpm_lightning.runs.figures.reconstruction import quality, reconstruction
from ddpm_lightning.runs.refusal import CONF, Refusal
from ddpm_lightning.runs.sampling import open_session, sampling_context
from ddpm_lightning.runs.train import train

SMOKE = ("experiment=smoke", "callbacks.progress=null", "+trainer.enable_progress_bar=false", "callbacks.samples=null")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    with initialize_config_dir(str(CONF), version_base="1.3"):
        train(compose("train", overrides=[*SMOKE, "trainer.max_steps=30", f"output_dir={folder}"]))
    return folder


@pytest.fixture
def measure(configure, run):
    """The figure and all files, of the run's own denoiser or of another."""

    def measured(*overrides, denoiser=None):
        quick = (f"ckpt={run}", "mode=reconstruction", "device=cpu", "sampler.num_steps=5")
        cfg = configure(*quick, *overrides, command="evaluate")
        if denoiser is None:
            first = evaluate(cfg)
        else:
            session = open_session(cfg)
            session = session._replace(denoiser=denoiser(session.loaded.denoiser.schedule))
            with sampling_context(session):
                first = reconstruction(session)
        newest = max((run / "evaluation").glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
        with open(newest.with_suffix(".csv")) as file:
            table = {row["reconstruction"]: row for row in csv.DictReader(file)}
        return first, table, json.loads(newest.read_text()), newest

    return measured


def ssim(a, b):
    """Wang et al. (2004), eq. 13, over the whole image with mirrored borders."""
    side = 11 if min(a.shape[1:]) >= 11 else 7
    window = np.exp(-((np.arange(side) - side // 2) ** 2) / (2 * (1.5 * side / 11) ** 2))
    window /= window.sum()

    def mean(x):
        return correlate1d(correlate1d(x, window, 1, mode="mirror"), window, 2, mode="mirror")

    ma, mb = mean(a), mean(b)
    va, vb, vab = mean(a * a) - ma**2, mean(b * b) - mb**2, mean(a * b) - ma * mb
    c1, c2 = 0.01**2, 0.03**2
    return ((2 * ma * mb + c1) * (2 * vab + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))).mean()


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 20), (1, 10, 9), (1, 11, 11), (3, 16, 12)])
def test_psnr_and_ssim_are_numpys(shape):
    images = torch.rand(4, *shape) * 2 - 1
    returned = images + 0.3 * torch.randn_like(images)  # some of it outside of [-1, 1]
    found = quality(images, returned)
    for i in range(4):
        a, b = ((x[i].double().clamp(-1, 1).numpy() + 1) / 2 for x in (images, returned))
        mse = ((a - b) ** 2).mean()
        assert found.mse[i].item() == pytest.approx(mse, rel=1e-5)
        assert found.psnr[i].item() == pytest.approx(-10 * np.log10(mse), rel=1e-5)
        assert found.ssim[i].item() == pytest.approx(ssim(a, b), abs=1e-4)


def test_of_gaussian_data_the_error_is_that_of_the_best_estimate(measure, monkeypatch):
    """lam sigma^2 / (alpha^2 lam + sigma^2), on a scale of half the length."""
    lam = 0.04

    def load(self, split):
        noise = lam**0.5 * torch.randn(600, 1, 8, 8, generator=torch.Generator().manual_seed(1))
        return LabelledImages((noise * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8), torch.arange(600) % 10)

    monkeypatch.setattr(Digits, "load", load)
    schedules = []

    def best(schedule):
        schedules.append(schedule)
        return GaussianDenoiser(schedule, lam)

    _, table, record, _ = measure("times=[5,20,60,100]", denoiser=best)
    for t in (5, 20, 60, 100):
        alpha, sigma = (scale.item() for scale in schedules[0](t))
        expected = lam * sigma**2 / (alpha**2 * lam + sigma**2) / 4
        assert float(table[f"t={t}"]["mse"]) == pytest.approx(expected, rel=0.03)
        # the mean of 600 logarithms of means over 64 pixels lies a little above the logarithm of the mean
        jensen = 10 / np.log(10) / 64
        assert float(table[f"t={t}"]["psnr"]) == pytest.approx(-10 * np.log10(expected) + jensen, abs=0.1)
        assert record["metrics"][f"mse_t={t}"] == pytest.approx(float(table[f"t={t}"]["mse"]), rel=1e-5)


def test_what_comes_back_without_any_difference_is_infinitely_near(measure, monkeypatch, capsys):
    class Black:
        """Knows the image."""

        def __init__(self, schedule):
            self.schedule = schedule

        def __call__(self, x_t, t, label=None):
            return torch.full_like(x_t, -1.0)

    def load(self, split):
        return LabelledImages(torch.zeros(20, 1, 8, 8, dtype=torch.uint8), torch.arange(20) % 10)

    monkeypatch.setattr(Digits, "load", load)
    first, table, record, path = measure("times=[50]", denoiser=Black)
    assert first == float("inf")
    for row in table.values():
        assert (row["psnr"], float(row["ssim"]), float(row["mse"])) == ("inf", 1, 0)
    assert record["metrics"]["psnr_ddim"] is None  # as JSON has no such number
    assert "Infinity" not in path.read_text()
    assert "ddim       inf dB   1.0000  0.000e+00" in capsys.readouterr().out


def test_early_times_and_more_steps_come_back_nearer(measure):
    few, table, *_ = measure("times=[0.05,0.3,0.9]", "num_images=30")
    errors = [float(table[f"t={t}"]["mse"]) for t in (5, 30, 90)]
    assert errors == sorted(errors)
    assert measure("times=[5]", "num_images=30", "sampler.num_steps=100")[0] > few + 5
    refined = measure("times=[5]", "num_images=30", "refinements=3")[0]
    assert refined > few


def test_the_picture_has_the_images_and_what_comes_back(measure, capsys):
    _, _, record, path = measure("times=[1]", "num_images=20", "batch_size=3")
    picture = np.array(Image.open(path.with_suffix(".png")))
    caption, row = 14, 52
    assert picture.shape[:2] == (3 * caption + 5 * row, 10 * 50 + 2)
    digits = Digits(root="unused", image_size=8, channels=1, batch_size=64, num_classes=10).split("val").images
    places = [i * 450 // 20 for i in range(20)]
    shown = [places[i] for i in module.spread(20, 10)]
    last = picture[2 * caption + 3 * row + caption + row :]  # the estimates at t = 1
    for i, place in enumerate(shown):
        cell = slice(2 + 50 * i, 50 + 50 * i)
        assert np.array_equal(picture[caption + 2 : caption + 50, cell, 0][::6, ::6], digits[place, 0].numpy())
        difference = last[2:50, cell, 0][::6, ::6].astype(int) - digits[place, 0].numpy()
        assert np.abs(difference).mean() < 8
    assert record["line"] in capsys.readouterr().out


def test_what_the_line_says_gives_the_figures_again_in_batches_of_any_size(measure):
    first, _, record, _ = measure(
        "num_images=25", "times=[0.5,7]", "refinements=1", "labels=false", "seed=3", "weights=raw"
    )
    [keys] = [part for part in record["line"].split(" | ") if part.startswith("mode=")]
    assert "times=[7,50]" in keys
    again, _, same, _ = measure(*keys.split(), "batch_size=10")
    assert (again, same) == (first, record)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["times=[0]"], r"times=\[0\]: must be a list of integers t in \[1, 100\], or shares of T in \(0, 1\]"),
        (["times=[101]"], r"times=\[101\]: must be a list of integers t in \[1, 100\]"),
        (["times=[1.5]"], r"times=\[1.5\]: must be a list of"),
        (["times=[0.0]"], r"times=\[0.0\]: must be a list of"),
        (["times=0.5"], r"times=0.5: must be a list of"),
        (["num_images=500"], r"num_images=500: must be null for all, or an integer in \[1, 450\], the images of split"),
        (["split=test"], "split=test: must be one of val, train"),
        (["sampler=heun"], "sampler: must be ddim with sampler.eta=0 for mode=reconstruction"),
        (["sampler.eta=0.5"], "sampler: must be ddim with sampler.eta=0"),
        (["refinements=-1"], "refinements=-1: must be an integer"),
    ],
)
def test_impossible_values_are_refused(measure, overrides, message):
    with pytest.raises(Refusal, match=message) as refusal:
        measure(*overrides)
    assert "\n" not in str(refusal.value)
