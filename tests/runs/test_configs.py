"""Every option of every group composes and builds; every experiment trains."""

import inspect
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, group_options, stopped_after_a_step
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf
from torchvision import models

from ddpm_lightning.data.celeba import CelebA
from ddpm_lightning.data.cifar10 import CIFAR10
from ddpm_lightning.data.mnist import MNIST
from ddpm_lightning.data.resident import LabelledImages
from ddpm_lightning.data.tiny_imagenet import TinyImageNet
from ddpm_lightning.module import DiffusionModule
from ddpm_lightning.runs.refusal import CONF
from ddpm_lightning.runs.sample import sample
from ddpm_lightning.runs.train import train

GROUPS = sorted(
    path.name
    for path in (ROOT / "conf").iterdir()
    if path.is_dir() and path.name not in ("hydra", "experiment", "debug", "sweep", "mode")
)
OPTIONS = [(group, option) for group in GROUPS for option in group_options(group)]
QUICK = (
    *("trainer.max_steps=2", "trainer.val_check_interval=1", "trainer.limit_val_batches=1", "sampler.num_steps=2"),
    *("callbacks.samples.num_images=2", "callbacks.progress=null", "+trainer.enable_progress_bar=false"),
    *("data.batch_size=2", "data.eval_batch_size=2", "trainer.accelerator=cpu"),
)


@pytest.fixture
def small_sets(monkeypatch):
    """Eight random images in place of the sets that would be downloaded."""

    def load(self, split):
        return LabelledImages(torch.randint(0, 256, (8, *self.image_shape), dtype=torch.uint8), torch.arange(8) % 10)

    for dataset in (CIFAR10, MNIST, CelebA, TinyImageNet):
        monkeypatch.setattr(dataset, "load", load)
        monkeypatch.setattr(dataset, "prepare_data", lambda self: None)
    monkeypatch.setattr(TinyImageNet, "class_names", None)  # which are in its archive


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_composes_and_builds(configure, tmp_path, group, option):
    if group in ("sampler", "features"):
        command, overrides = ("evaluate" if group == "features" else "sample"), ["ckpt=x"]
    else:
        command, overrides = "train", []
    if (group, option) == ("data", "image_folder"):
        (tmp_path / "images").mkdir()
        overrides.append(f"data.root={tmp_path / 'images'}")
    if group == "model" and option not in ("unet_8", "unet_tiny"):
        overrides += ["data=cifar10"] + (["data.image_size=64"] if option in ("unet_64", "unet_tiny_imagenet") else [])
    if group == "lr_schedule":
        overrides.append("lr_schedule.warmup_steps=10")
    cfg = configure(*overrides, f"{group}={option}", command=command)
    if (group, option) == ("features", "inception"):
        cfg.features.weights = str(tmp_path / "none")  # or it would be downloaded
        with pytest.raises(Exception, match="weights must be the path of"):
            instantiate(cfg.features, _convert_="all")
        return
    if (group, option) == ("objective", "perceptual"):
        weights = tmp_path / "vgg16.pth"
        torch.save(models.vgg16(weights=None).state_dict(), weights)
        cfg.objective.perceptual.weights = str(weights)
    if (group, option) == ("logger", "wandb"):
        cfg.logger.wandb.offline = True
    with torch.device("meta" if group == "model" else "cpu"):
        made = instantiate(cfg[group], _convert_="all")
    assert made is not None


@pytest.mark.parametrize("optimizer", group_options("optimizer"))
@pytest.mark.parametrize("lr_schedule", group_options("lr_schedule"))
def test_the_module_builds_with_each_optimizer_and_schedule(configure, optimizer, lr_schedule):
    cfg = configure(f"optimizer={optimizer}", f"lr_schedule={lr_schedule}", "experiment=smoke")
    module: DiffusionModule = instantiate(cfg.module, _convert_="all")
    module._trainer = SimpleNamespace(max_steps=2000, max_epochs=-1)
    assert module.configure_optimizers()["optimizer"].param_groups[0]["lr"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("experiment", group_options("experiment"))
def test_every_experiment_trains_a_step_and_draws(configure, small_sets, tmp_path, experiment):
    narrow = ("model.base_channels=8",) if experiment not in ("digits", "smoke") else ()
    warmup = ("lr_schedule.warmup_steps=1",)
    loss = train(configure(f"experiment={experiment}", *QUICK, *narrow, *warmup))
    assert loss > 0
    run = tmp_path / "run"
    assert {path.name for path in run.iterdir()} >= {"checkpoints", "config.yaml", "csv", "samples", "tensorboard"}
    assert (run / "samples" / "step-0000002.png").stat().st_size > 100


@pytest.mark.slow
@pytest.mark.parametrize("experiment", group_options("experiment"))
def test_every_experiment_goes_on_where_it_stopped_and_is_sampled(configure, small_sets, tmp_path, experiment):
    """In precisely the same weights as without the stop."""
    narrow = ("model.base_channels=8",) if experiment not in ("digits", "smoke") else ()
    quick = (*QUICK, *narrow, "callbacks.samples=null", "callbacks.held_out=null", "trainer.max_epochs=-1")
    more = ("lr_schedule.warmup_steps=1", "trainer.precision=32-true")
    train(configure(f"experiment={experiment}", *quick, *more, output_dir="whole"))
    with stopped_after_a_step(), pytest.raises(SystemExit):
        train(configure(f"experiment={experiment}", *quick, *more, output_dir="stopped"))
    train(configure(f"experiment={experiment}", *quick, *more, output_dir="stopped"))
    ends = [torch.load(tmp_path / f / "checkpoints" / "last.ckpt", weights_only=True) for f in ("whole", "stopped")]
    for part in ("whole", "stopped"):
        sample_checkpoint(configure, tmp_path / part)
    for name, value in ends[0]["state_dict"].items():
        assert torch.equal(value, ends[1]["state_dict"][name]), name


def sample_checkpoint(configure, run):
    """Two images from a run, by the command."""
    quick = ("num_samples=2", "sampler.num_steps=2", "device=cpu", f"output_dir={run / 'drawn'}")
    sample(configure(f"ckpt={run}", *quick, command="sample"))
    assert len(list((run / "drawn").glob("seed-*.png"))) == 2


def test_the_other_recipes_have_the_settings_of_their_sources(configure):
    """What the systems they come from are known to have used."""
    cfg = configure("experiment=cifar10_snr")
    assert (cfg.model.num_res_blocks, cfg.data.batch_size, cfg.trainer.max_epochs) == (3, 128, 2000)
    assert (cfg.weighting.min, cfg.weighting.max) == (0.1, 1.0)
    assert cfg.lr_schedule._target_.endswith("Cosine")
    cfg = configure("experiment=celeba64")
    assert (cfg.data.batch_size, cfg.trainer.max_steps, cfg.callbacks.ema.start_step) == (64, 100_000, 5000)
    assert (cfg.trainer.log_every_n_steps, cfg.callbacks.samples.num_images) == (100, 64)
    assert cfg.callbacks.samples.every_n_train_steps == 5000
    assert cfg.callbacks.checkpoint.every_n_train_steps == cfg.callbacks.checkpoint.every_n_train_steps == 10_000
    cfg = configure("experiment=tiny_imagenet64")
    assert (cfg.data.batch_size, cfg.optimizer.lr, cfg.trainer.max_epochs) == (16, 1e-4, 100)
    assert (cfg.callbacks.samples.every_n_epochs, cfg.callbacks.checkpoint.every_n_epochs) == (5, 10)
    assert (cfg.schedule.num_steps, cfg.callbacks.checkpoint.every_n_epochs) == (500, 10)
    cfg = configure("experiment=cifar10_cfg")
    assert (cfg.model.num_classes, cfg.module.label_drop) == (10, 0.1)
    assert cfg.callbacks.samples.guidance > 0


def test_cifar10_ddpm_has_the_papers_settings(configure):
    cfg = configure("experiment=cifar10_ddpm")
    assert (cfg.data.batch_size, cfg.trainer.max_steps, cfg.optimizer.lr) == (128, 800_000, 2e-4)
    assert (cfg.lr_schedule.warmup_steps, cfg.model.dropout, cfg.callbacks.ema.decay) == (5000, 0.1, 0.9999)
    assert (cfg.sampler.variance, cfg.sampler.num_steps, cfg.data.horizontal_flip) == ("large", 1000, True)
    assert cfg.model.num_classes is None


@pytest.mark.parametrize("experiment", group_options("experiment"))
def test_every_experiments_header_has_its_command(experiment):
    text = (ROOT / "conf" / "experiment" / f"{experiment}.yaml").read_text()
    header = [line for line in text.splitlines() if line.startswith("# ")]
    assert "python scripts/train.py" in header[1]
    assert experiment == "digits" or f"experiment={experiment}" in header[1]
    assert len(header) >= 3


def test_runs_write_their_checkpoints_whole_or_not_at_all(configure):
    from hydra.utils import instantiate

    from ddpm_lightning.checkpoint import AtomicCheckpointIO

    trainer = instantiate(configure("trainer.accelerator=cpu").trainer, _convert_="all", logger=False)
    assert isinstance(trainer.strategy.checkpoint_io, AtomicCheckpointIO)


@pytest.mark.parametrize(
    ("group", "option"),
    [(g, o) for g in ("schedule", "weighting", "distance", "parameterization") for o in group_options(g)],
)
def test_the_mathematics_options_are_their_classes_own_defaults(group, option):
    node = OmegaConf.load(CONF / group / f"{option}.yaml")
    parameters = inspect.signature(get_class(node._target_)).parameters
    for name, value in node.items():
        if name != "_target_":
            assert value == parameters[name].default, name
