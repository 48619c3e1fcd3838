import subprocess
import sys

import pytest
import torch
from hydra import compose, initialize_config_dir

import ddpm_lightning
from ddpm_lightning import load, sample
from ddpm_lightning.diffusion.samplers.ddim import DDIMSampler
from ddpm_lightning.diffusion.samplers.dpm_solver import DPMSolverSampler
from ddpm_lightning.runs.refusal import CONF
from ddpm_lightning.runs.sample import sample as command
from ddpm_lightning.runs.train import train


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    quick = ("experiment=smoke", "callbacks.progress=null", "+trainer.enable_progress_bar=false")
    for name, more in (("conditional", []), ("unconditional", ["model.num_classes=null"])):
        with initialize_config_dir(str(CONF), version_base="1.3"):
            train(compose("train", overrides=[*quick, "callbacks.samples=null", f"output_dir={folder / name}", *more]))
    return folder


def test_images_are_those_of_the_command(runs, configure, tmp_path):
    from PIL import Image

    images = sample(
        load(runs / "conditional", device="cpu"), 4, label=3, guidance=1.5, sampler=DPMSolverSampler(5), seed=7
    )
    assert images.shape == (4, 1, 8, 8)
    assert images.dtype == torch.float32
    options = ("sampler=dpm_solver", "sampler.num_steps=5", "num_samples=4", "seed=7", "label=3", "guidance=1.5")
    out = tmp_path / "out"
    command(configure(f"ckpt={runs / 'conditional'}", *options, f"output_dir={out}", "device=cpu", command="sample"))
    for i in range(4):
        expected = torch.tensor(list(Image.open(out / f"seed-{7 + i:06d}.png").tobytes())).view(8, 8)
        assert ((images[i, 0] * 255).round() - expected).abs().max() <= 1


def test_labels_are_one_or_one_for_each_or_all_in_turn(runs):
    model = load(runs / "conditional", device="cpu")
    quick = {"sampler": DDIMSampler(3)}
    in_turn = sample(model, 12, **quick)
    torch.testing.assert_close(in_turn, sample(model, 12, label=[i % 10 for i in range(12)], **quick))
    torch.testing.assert_close(in_turn[:1], sample(model, 1, label=0, **quick), atol=1e-4, rtol=0)
    assert sample(load(runs / "unconditional", device="cpu"), 2, **quick).shape == (2, 1, 8, 8)


@pytest.mark.parametrize(
    ("run", "settings", "message"),
    [
        ("conditional", {"num_images": 0}, "num_images must be at least 1, got 0"),
        ("conditional", {"label": 10}, r"label must lie in \[0, 9\], got 10"),
        ("conditional", {"label": [1, 2, 3]}, "label must be one, or one for each of 16 images, got 3"),
        ("conditional", {"guidance": -1.0}, "guidance must be at least 0, got -1.0"),
        ("conditional", {"sampler": DDIMSampler(500)}, r"num_steps must lie in \[1, 100\]"),
        ("conditional", {"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ("unconditional", {"label": 1}, "label must be None for a model without labels, got 1"),
        ("unconditional", {"guidance": 1.0}, "guidance must be 0 for a network without labels, got 1.0"),
    ],
)
def test_what_a_model_can_not_do_is_refused(runs, run, settings, message):
    with pytest.raises(ValueError, match=message):
        sample(load(runs / run, device="cpu"), **settings)


def test_guidance_needs_a_model_that_was_trained_without_its_labels_too(runs, tmp_path):
    checkpoint = torch.load(runs / "conditional" / "checkpoints" / "last.ckpt", weights_only=True)
    checkpoint["config"]["module"]["label_drop"] = 0.0
    torch.save(checkpoint, tmp_path / "never.ckpt")
    with pytest.raises(ValueError, match="guidance must be 0 for a network trained with module.label_drop=0, got 1.0"):
        sample(load(tmp_path / "never.ckpt", device="cpu"), guidance=1.0)


def test_missing_and_foreign_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="ckpt must be a checkpoint file, or a run folder"):
        load(tmp_path / "none")
    torch.save({"weights": 1}, tmp_path / "foreign.ckpt")
    with pytest.raises(ValueError, match=r"foreign.ckpt, which lacks"):
        load(tmp_path / "foreign.ckpt")


def test_the_package_imports_without_torch():
    code = "import sys, ddpm_lightning; assert 'torch' not in sys.modules; print(ddpm_lightning.__version__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0.1.0"
    with pytest.raises(AttributeError, match="has no attribute 'foo'"):
        _ = ddpm_lightning.foo
