"""The page to sample in: what it calls, and in a real browser where there is one."""

import os
import re
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import ROOT
from hydra import compose, initialize_config_dir
from PIL import Image

from ddpm_lightning.checkpoint import load_denoiser
from ddpm_lightning.diffusion.samplers.unipc import UniPCSampler
from ddpm_lightning.generation import generate
from ddpm_lightning.images import grid, to_uint8
from ddpm_lightning.runs.app import ALL, Studio, _opens, find_runs, page, sampler_names
from ddpm_lightning.runs.refusal import CONF, Refusal
from ddpm_lightning.runs.train import train


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    quick = ("experiment=smoke", "callbacks.progress=null", "+trainer.enable_progress_bar=false")
    for name, more in (("conditional", []), ("unconditional", ["model.num_classes=null"])):
        with initialize_config_dir(str(CONF), version_base="1.3"):
            train(compose("train", overrides=[*quick, "callbacks.samples=null", f"output_dir={folder / name}", *more]))
    return folder


def test_runs_are_found_newest_first(runs):
    assert find_runs(runs) == [str(runs / "unconditional"), str(runs / "conditional")]
    assert find_runs(runs / "none") == []


def test_a_picture_comes_about_step_by_step_and_ends_as_the_sample_with_a_film(runs):
    run = str(runs / "conditional")
    shown = list(Studio("cpu").draw(run, "4", "unipc", 5, 1.5, 7, 4))
    assert [status for _, _, status in shown] == [f"step {i} of 5" for i in range(6)] + ["4 images, 5 network calls"]
    from ddpm_lightning.diffusion.guidance import GuidedDenoiser

    denoiser = GuidedDenoiser(load_denoiser(run).denoiser, 1.5, 10)
    images = torch.cat(list(generate(denoiser, UniPCSampler(5), (1, 8, 8), range(7, 11), [4] * 4)))
    expected = grid(to_uint8(images), 2).permute(1, 2, 0).numpy()
    assert np.abs(shown[-1][0].astype(int) - expected).max() <= 1
    with Image.open(shown[-1][1]) as film:
        assert film.n_frames == 6
        film.seek(5)
        assert np.abs(np.array(film.convert("RGB")).astype(int) - expected).max() <= 3


def test_labels_are_those_of_the_model(runs):
    studio = Studio("cpu")
    assert studio.labels(str(runs / "conditional")) == [ALL, *map(str, range(10))]
    assert studio.labels(str(runs / "unconditional")) == [ALL]
    *_, (_, _, status) = studio.draw(str(runs / "unconditional"), ALL, "ddim", 3, 0, 0, 1)
    assert status == "1 images, 3 network calls"


@pytest.mark.parametrize(
    ("run", "changes", "message"),
    [
        ("conditional", {"num_steps": 500}, r"sampler.num_steps must lie in \[1, 100\]"),
        ("unconditional", {"guidance": 2.0}, "guidance must be 0 for a network without labels"),
        ("conditional", {"num_images": 1000}, r"images=1000: must lie in \[1, 64\]"),
        ("conditional", {"seed": None}, "steps, guidance, seed and images must have values"),
        ("conditional", {"label": "cat"}, "label=cat: must be one of all in turn, 0, 1"),
        ("conditional", {"seed": -1}, "seed=-1: must be at least 0"),
        ("none", {}, "ckpt must be a checkpoint file, or a run folder"),
    ],
)
def test_what_a_model_can_not_do_is_refused(runs, run, changes, message):
    settings = {"label": ALL, "sampler": "ddim", "num_steps": 3, "guidance": 0, "seed": 0, "num_images": 1, **changes}
    with pytest.raises(Refusal, match=message):
        list(Studio("cpu").draw(str(runs / run), **settings))


def test_a_broken_run_does_not_keep_the_others_away(runs, tmp_path):
    (tmp_path / "bad" / "checkpoints").mkdir(parents=True)
    (tmp_path / "bad" / "checkpoints" / "last.ckpt").write_bytes(b"broken")
    assert [_opens(Studio("cpu"), str(run)) for run in (tmp_path / "bad", runs / "conditional")] == [False, True]
    with pytest.raises(Refusal, match="must have a run whose checkpoint can be read"):
        page(tmp_path, "cpu")
    with pytest.raises(Refusal, match="device=abacus: must be one of cpu, cuda, mps"):
        page(runs, "abacus")


def test_all_samplers_of_the_configuration_can_be_chosen():
    assert sampler_names() == ["ancestral", "ddim", "dpm_solver", "heun", "unipc"]


def test_without_runs_or_gradio_one_line_says_so(runs, script, tmp_path):
    (tmp_path / "gradio.py").write_text("raise ImportError('planted')")
    for folder, environment, said in (
        ("nowhere", {}, "must be a folder with runs that have checkpoints"),
        (str(runs), {"PYTHONPATH": str(tmp_path)}, "the app needs pip install -e '.[app]'"),
    ):
        done = script("app.py", folder, check=2, **environment)
        assert said in done.stderr
        assert done.stderr.count("\n") == 1


@pytest.fixture
def browser():
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("no browser here: apt install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1400,1000"):
        options.add_argument(argument)
    made = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield made
    made.quit()


@pytest.mark.slow
def test_in_a_browser_a_click_draws_images_and_their_film(browser, runs, tmp_path):
    pytest.importorskip("gradio")
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    command = [sys.executable, str(ROOT / "scripts" / "app.py"), str(runs), "--port", "7899", "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GRADIO_ANALYTICS_ENABLED": "False", "PYTHONUNBUFFERED": "1"}
    with open(tmp_path / "log", "w") as log:
        server = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 120
        while "http://127.0.0.1:7899" not in (tmp_path / "log").read_text() and time.monotonic() < deadline:
            time.sleep(0.2)
        browser.get("http://127.0.0.1:7899")
        wait = WebDriverWait(browser, 60)
        button = wait.until(lambda b: b.find_element(By.ID, "draw"))
        assert browser.find_element(By.CSS_SELECTOR, "#run input").get_attribute("value").endswith("unconditional")
        button.click()

        def status(b):
            return b.find_element(By.CSS_SELECTOR, "#status textarea").get_attribute("value")

        wait.until(lambda b: "16 images, 20 network calls" in status(b))
        sources = [
            wait.until(lambda b, part=part: b.find_element(By.CSS_SELECTOR, f"#{part} img").get_attribute("src"))
            for part in ("picture", "film")
        ]
        assert re.search(r"\.(webp|png)$", sources[0])
        assert sources[1].endswith("film.gif")
        browser.save_screenshot(str(tmp_path / "page.png"))
    finally:
        server.terminate()
        server.wait(timeout=20)
