import json

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_lightning.runs.refusal import Refusal
from ddpm_lightning.runs.sample import sample
from ddpm_lightning.runs.train import train

SMOKE = ("experiment=smoke", "callbacks.progress=null", "+trainer.enable_progress_bar=false", "callbacks.samples=null")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A conditional and an unconditional run of a few steps."""
    from hydra import compose, initialize_config_dir

    from ddpm_lightning.runs.refusal import CONF

    folder = tmp_path_factory.mktemp("runs")
    for name, more in (("conditional", []), ("unconditional", ["model.num_classes=null"])):
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose("train", overrides=[*SMOKE, "optimizer.lr=0.02", f"output_dir={folder / name}", *more])
        train(cfg)
    return folder


def draw(configure, ckpt, out, *overrides):
    sample(configure(f"ckpt={ckpt}", f"output_dir={out}", "sampler.num_steps=4", *overrides, command="sample"))
    return {path.name: np.array(Image.open(path)) for path in out.glob("*.png")}


@pytest.mark.parametrize("sampler", ["ancestral", "ddim", "heun", "dpm_solver", "unipc"])
def test_each_sampler_writes_a_file_for_each_seed_and_a_grid(configure, runs, tmp_path, sampler):
    files = draw(configure, runs / "conditional", tmp_path / "out", f"sampler={sampler}", "num_samples=5", "seed=7")
    assert set(files) == {*(f"seed-{i:06d}.png" for i in range(7, 12)), "grid.png"}
    assert files["seed-000007.png"].shape == (8, 8)
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert settings["seed"] == 7
    assert settings["sampler"]["num_steps"] == 4


def test_results_do_not_depend_on_the_batch_size(configure, runs, tmp_path):
    one, other = (
        draw(configure, runs / "conditional", tmp_path / size, "num_samples=6", f"batch_size={size}") for size in "25"
    )
    for name, image in one.items():
        assert np.abs(image.astype(int) - other[name].astype(int)).max() <= 1


def test_seeds_name_images_wherever_they_start(configure, runs, tmp_path):
    first = draw(configure, runs / "conditional", tmp_path / "a", "num_samples=4", "label=3")
    second = draw(configure, runs / "conditional", tmp_path / "b", "num_samples=2", "seed=2", "label=3")
    for name in ("seed-000002.png", "seed-000003.png"):
        assert np.abs(first[name].astype(int) - second[name].astype(int)).max() <= 1


def test_labels_and_guidance_change_the_image(configure, runs, tmp_path):
    images = []
    for i, more in enumerate((["label=3"], ["label=4"], ["label=3", "guidance=4.0"], ["label=[3,4]"])):
        images.append(draw(configure, runs / "conditional", tmp_path / str(i), "num_samples=1", *more)["grid.png"])
    assert np.array_equal(images[0], images[3])
    assert not np.array_equal(images[0], images[1])
    assert not np.array_equal(images[0], images[2])


def test_guidance_is_against_the_null_class(configure, runs, tmp_path, monkeypatch):
    import ddpm_lightning.runs.sample as module

    made = []
    original = module.GuidedDenoiser

    def watched(denoiser, w, null_label):
        made.append((w, null_label))
        return original(denoiser, w, null_label)

    monkeypatch.setattr(module, "GuidedDenoiser", watched)
    draw(configure, runs / "conditional", tmp_path / "out", "num_samples=1", "guidance=2.5")
    assert made == [(2.5, 10)]


def test_averaged_and_raw_weights_give_other_images(configure, runs, tmp_path):
    ema, raw = (
        draw(configure, runs / "conditional", tmp_path / w, "num_samples=1", f"weights={w}") for w in ("ema", "raw")
    )
    assert not np.array_equal(ema["grid.png"], raw["grid.png"])


def test_the_default_folder_is_named_by_the_settings(configure, runs):
    for more in (["seed=0"], ["seed=1"], ["label=2"]):
        cfg = configure(f"ckpt={runs / 'unconditional'}", "num_samples=1", "sampler.num_steps=2", command="sample")
        if more[0] != "label=2":
            cfg.seed = int(more[0][-1])
            sample(cfg)
    folders = list((runs / "unconditional" / "samples").iterdir())
    assert len(folders) == 2
    assert all(folder.name.startswith("ddim-2-") for folder in folders)


@pytest.mark.parametrize(
    ("run", "overrides", "message"),
    [
        ("conditional", ["label=10"], r"label=10: must be an integer in \[0, 9\]"),
        ("conditional", ["label=[1,-1]"], r"label=\[1, -1\]: must be an integer in \[0, 9\]"),
        ("conditional", ["label=cat"], "label=cat: must be an integer"),
        ("conditional", ["sampler.num_steps=101"], r"sampler.num_steps must lie in \[1, 100\].*got 101"),
        ("conditional", ["sampler.num_steps=0"], "sampler.num_steps must be an integer of at least 1, got 0"),
        ("conditional", ["num_samples=0"], r"num_samples=0: must be an integer in \[1, "),
        ("conditional", ["seed=-1"], r"seed=-1: must be an integer in \[0, "),
        ("conditional", ["guidance=-1.0"], "guidance=-1.0: must be at least 0"),
        ("conditional", ["weights=best"], "weights must be one of raw, ema, 0.9999, those of .*, got best"),
        ("conditional", ["device=abacus"], "device=abacus"),
        ("conditional", [f"output_dir={__file__}/x"], "output_dir=.*must be a folder that can be written"),
        ("unconditional", ["label=3"], "label=3: must be null"),
        ("unconditional", ["guidance=1.0"], "guidance=1.0: must be 0"),
        ("missing", [], "ckpt must be a checkpoint file, or a run folder"),
    ],
)
def test_impossible_values_are_refused(configure, runs, tmp_path, run, overrides, message):
    defaults = [f"output_dir={tmp_path / 'out'}", "sampler.num_steps=2"]
    defaults = [d for d in defaults if d.partition("=")[0] not in {o.partition("=")[0] for o in overrides}]
    with pytest.raises(Refusal, match=message) as refusal:
        sample(configure(f"ckpt={runs / run}", *defaults, *overrides, command="sample"))
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_that_lacks_weights_is_refused(configure, runs, tmp_path):
    checkpoint = torch.load(runs / "conditional" / "checkpoints" / "last.ckpt", weights_only=True)
    checkpoint["ema"]["averages"]["0.9999"].popitem()
    torch.save(checkpoint, tmp_path / "short.ckpt")
    with pytest.raises(Refusal, match="short.ckpt"):
        sample(configure(f"ckpt={tmp_path / 'short.ckpt'}", command="sample"))
