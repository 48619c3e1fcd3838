"""Weights alone, in a file of their own."""

import pytest
import torch
from hydra import compose, initialize_config_dir
from safetensors.torch import save_file

from ddpm_lightning.checkpoint import export, load_denoiser
from ddpm_lightning.runs.refusal import CONF, Refusal
from ddpm_lightning.runs.train import train

SMOKE = ("experiment=smoke", "callbacks.progress=null", "+trainer.enable_progress_bar=false", "callbacks.samples=null")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    with initialize_config_dir(str(CONF), version_base="1.3"):
        train(compose("train", overrides=[*SMOKE, f"output_dir={folder}", "callbacks.ema.decay=[0.9,0.5]"]))
    return folder


@pytest.mark.parametrize(("asked", "name"), [("ema", "0.9"), ("0.5", "0.5"), ("raw", "raw")])
def test_an_exported_denoiser_is_the_same_and_says_whose_weights_it_has(run, tmp_path, asked, name):
    file = export(run, tmp_path / "it.safetensors", asked)
    loaded, original = load_denoiser(file, asked), load_denoiser(run, asked)
    assert loaded.weights == original.weights == name
    for key in ("step", "images_seen", "class_names", "config"):
        assert getattr(loaded, key) == getattr(original, key), key
    x, t, label = torch.randn(2, 1, 8, 8), 50, torch.tensor([1, 2])
    assert torch.equal(loaded.denoiser(x, t, label), original.denoiser(x, t, label))
    assert file.stat().st_size < (run / "checkpoints" / "last.ckpt").stat().st_size / 3


def test_other_weights_than_the_exported_are_refused(run, tmp_path):
    file = export(run, tmp_path / "it.safetensors")
    with pytest.raises(ValueError, match=r"weights must be one of ema, 0.9, those of .*it.safetensors, got raw"):
        load_denoiser(file, "raw")
    with pytest.raises(ValueError, match="weights must be one of raw, ema, 0.9, 0.5"):
        export(run, tmp_path / "other.safetensors", "0.7")
    assert not (tmp_path / "other.safetensors").exists()


def test_training_does_not_go_on_from_weights_alone(run, tmp_path, configure):
    file = export(run, tmp_path / "it.safetensors")
    with pytest.raises(Refusal, match="resume=.*it.safetensors holds exported weights alone"):
        train(configure(*SMOKE, f"resume={file}", output_dir="other"))


def test_foreign_files_are_refused(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"no tensors")
    for name in ("foreign", "broken"):
        with pytest.raises(ValueError, match="ckpt must be a checkpoint that this project wrote"):
            load_denoiser(tmp_path / f"{name}.safetensors")


def test_the_command_writes_a_file_that_the_others_take(run, script, tmp_path):
    done = script("export.py", str(run), "--to", "it.safetensors")
    assert "use it as ckpt=it.safetensors" in done.stdout
    script("sample.py", "ckpt=it.safetensors", "num_samples=1", "sampler.num_steps=2", "output_dir=drawn")
    assert (tmp_path / "drawn" / "seed-000000.png").is_file()
    done = script("export.py", "nowhere", check=2)
    assert (
        done.stderr
        == "export.py: ckpt must be a checkpoint file, or a run folder that has checkpoints/last.ckpt, got nowhere\n"
    )
