"""Every option of the objective trains through the command, resumes to the same bits, and is drawn from."""

import pytest
import torch
from conftest import group_options, stopped_after_a_step
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torchvision import models

from ddpm_lightning.checkpoint import load_denoiser
from ddpm_lightning.runs.refusal import Failure, Refusal
from ddpm_lightning.runs.sample import sample
from ddpm_lightning.runs.train import train

SMOKE = (
    *("experiment=smoke", "callbacks.progress=null", "+trainer.enable_progress_bar=false", "trainer.accelerator=cpu"),
    *("callbacks.samples=null", "callbacks.best=null", "callbacks.checkpoint.every_n_train_steps=1000"),
)
QUIET = ("logger.tensorboard=null", "logger.csv=null", "callbacks.lr=null", "callbacks.held_out=null")
ZERO = ("schedule.zero_terminal_snr=true", "parameterization=v", "objective.denoising.space=output")

OPTIONS = [
    *((f"{group}={option}",) for group in ("distance", "weighting", "timesteps") for option in group_options(group)),
    *((f"lr_schedule={option}", "lr_schedule.warmup_steps=2") for option in group_options("lr_schedule")),
    *((f"objective={option}",) for option in group_options("objective") if option != "perceptual"),
    ("objective=bound", "objective.bound.variance=learned", "model.learned_variance=true"),
    ("objective=hybrid", "weighting=min_snr", "timesteps=importance", "timesteps.min_count=1"),
    ("module.offset_noise=0.1",),
    ("module.input_perturbation=0.1",),
    ZERO,
    (*ZERO, "parameterization=x0"),
    ("callbacks.ema.decay=[0.5,0.9]", "callbacks.ema.start_step=2"),
]


def last(folder):
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


@pytest.mark.parametrize("option", OPTIONS, ids=" ".join)
def test_every_option_trains_and_goes_on_to_the_same_bits(configure, tmp_path, option):
    """Three steps at once, and one and two; the learning rate knows of three from the start."""
    quick = (*SMOKE, *QUIET, "schedule.num_steps=8", "sampler.num_steps=2", *option)
    epochs = ("trainer.max_steps=-1", "trainer.max_epochs=1", "data.batch_size=400")  # three steps
    train(configure(*quick, *epochs, output_dir="whole"))
    whole = last(tmp_path / "whole")
    assert whole["global_step"] == 3
    with stopped_after_a_step(), pytest.raises(SystemExit):
        train(configure(*quick, *epochs, output_dir="stopped"))
    assert last(tmp_path / "stopped")["global_step"] == 1
    train(configure(*quick, *epochs, output_dir="stopped"))
    resumed = last(tmp_path / "stopped")
    for name, value in whole["state_dict"].items():
        assert torch.equal(value, resumed["state_dict"][name]), name
    for decay, average in whole["ema"]["averages"].items():
        for name, value in average.items():
            assert torch.equal(value, resumed["ema"]["averages"][decay][name]), (decay, name)
    assert whole["lr_schedulers"] == resumed["lr_schedulers"]
    moved = load_denoiser(tmp_path / "whole", "raw").denoiser.net.head[2].weight
    assert moved.abs().max() > 0  # it starts at zero


def test_the_learning_rate_of_a_run_in_epochs_is_the_formulas_at_every_step(configure, tmp_path):
    options = ("lr_schedule=linear", "lr_schedule.warmup_steps=2", "optimizer.lr=0.1", "data.batch_size=200")
    length = ("trainer.max_steps=-1", "trainer.max_epochs=2", "trainer.log_every_n_steps=1")
    train(configure(*SMOKE, *options, *length, "optimizer=adam"))
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    rates = [event.value for event in events.Scalars("lr-Adam")]
    assert rates == pytest.approx([0.05, 0.1, *(0.1 * (1 - n / 10) for n in range(10))], rel=1e-5)


def test_the_terms_of_an_objective_are_logged_one_by_one(configure, tmp_path):
    options = ("objective=hybrid", "trainer.log_every_n_steps=1", "trainer.max_steps=3", "timesteps=importance")
    train(configure(*SMOKE, *options))
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    for step in range(3):
        parts = [events.Scalars(f"train/{name}")[step].value for name in ("loss", "denoising", "bound")]
        assert parts[0] == pytest.approx(parts[1] + parts[2], rel=1e-5)


def test_a_perceptual_term_trains_with_weights_from_a_file(configure, tmp_path):
    torch.save(models.alexnet(weights=None).state_dict(), tmp_path / "alexnet.pth")
    perceptual = ("objective=perceptual", "objective.perceptual.net=alex", "trainer.max_steps=2", "data.batch_size=4")
    train(configure(*SMOKE, *QUIET, *perceptual, f"objective.perceptual.weights={tmp_path / 'alexnet.pth'}"))
    size = (tmp_path / "run" / "checkpoints" / "last.ckpt").stat().st_size
    assert size < 2e6  # without LPIPS, of 10 MB
    with pytest.raises(Refusal, match="objective.perceptual.weights must be the path of torchvision's alexnet weights"):
        train(configure(*SMOKE, *QUIET, *perceptual, "objective.perceptual.weights=none", output_dir="other"))


def test_a_learned_variance_is_sampled_from(configure, tmp_path):
    train(configure(*SMOKE, *QUIET, "objective=hybrid", "trainer.max_steps=2"))
    drawn = ("num_samples=2", "device=cpu", "sampler=ancestral", "sampler.num_steps=5", "sampler.variance=learned")
    for guidance in (0.0, 1.0):
        out = f"output_dir={tmp_path / f'drawn{guidance}'}"
        sample(configure(f"ckpt={tmp_path / 'run'}", *drawn, out, f"guidance={guidance}", command="sample"))
        assert (tmp_path / f"drawn{guidance}" / "seed-000001.png").is_file()
    train(configure(*SMOKE, *QUIET, "trainer.max_steps=2", output_dir="plain"))
    with pytest.raises(
        Refusal, match="sampler.variance=learned: must be small or large for a network that learns none"
    ):
        sample(configure(f"ckpt={tmp_path / 'plain'}", *drawn, command="sample"))


def test_each_of_several_averages_is_drawn_logged_and_sampled_by_its_name(configure, tmp_path):
    options = ("callbacks.ema.decay=[0.5,0.9]", "callbacks.ema.warmup=false", "optimizer.lr=0.02")
    samples = [option for option in SMOKE if option != "callbacks.samples=null"]
    train(configure(*samples, *options))
    folder = tmp_path / "run"
    assert {path.name for path in (folder / "samples").glob("*.png")} == {
        f"step-{step:07d}{name}.png" for step in (10, 20) for name in ("", "-0.9")
    }
    events = EventAccumulator(str(folder / "tensorboard"), {"images": 0}).Reload()
    assert {"samples", "samples_0.9", "denoising"} <= set(events.Tags()["images"])
    losses = {name: events.Scalars(name)[-1].value for name in ("val/loss", "val/loss_raw", "val/loss_0.9")}
    assert len(set(losses.values())) == 3
    for weights, name in (("0.5", "val/loss"), ("0.9", "val/loss_0.9"), ("raw", "val/loss_raw")):
        denoiser = load_denoiser(folder, weights).denoiser
        assert held_out(denoiser, configure) == pytest.approx(losses[name], rel=1e-4), name
    assert load_denoiser(folder, "ema").weights == "0.5"
    for weights in ("0.5", "0.9", "raw"):
        out = tmp_path / weights
        quick = ("num_samples=1", "device=cpu", "sampler.num_steps=2", f"output_dir={out}")
        sample(configure(f"ckpt={folder}", f"weights={weights}", *quick, command="sample"))
    pictures = [(tmp_path / weights / "seed-000000.png").read_bytes() for weights in ("0.5", "0.9", "raw")]
    assert len(set(pictures)) == 3


def held_out(denoiser, configure):
    """The held-out loss of a denoiser, by a module of its own."""
    from types import SimpleNamespace

    from hydra.utils import instantiate

    cfg = configure("experiment=smoke")
    module = instantiate(cfg.module, _convert_="all")
    module.denoiser.load_state_dict(denoiser.state_dict())
    module.eval()
    module._trainer = SimpleNamespace(world_size=1, global_rank=0, strategy=SimpleNamespace(global_rank=0))
    type(module).global_rank.fget  # noqa: B018 - a property of the trainer's
    data = instantiate(cfg.data, _convert_="all")
    losses = [loss for batch in data.val_dataloader() for loss in module.held_out_losses(batch)]
    return torch.cat(losses).mean().item()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("schedule.zero_terminal_snr=true",), "zero_terminal_snr=true: must be false for parameterization=epsilon"),
        (ZERO[:2], "must be false for objective.denoising.space=noise, .*objective.denoising.space=output"),
        (("objective=bound", "objective.bound.variance=learned"), "model.learned_variance=false: must be true"),
        (
            ("model.learned_variance=true",),
            "model.learned_variance=true: must be false for an objective that trains no",
        ),
        (("weighting.gamma=-1", "weighting=min_snr"), "^weighting.gamma must be above 0, got -1"),
        (
            ("timesteps=importance", "timesteps.num_steps=10"),
            "^timesteps.num_steps=10: must be 100, as of the schedule",
        ),
        (
            ("objective=adversarial", "objective.adversarial.channels=3"),
            "^objective.adversarial.channels=3: must be 1, the",
        ),
        (
            ("parameterization=v", "weighting=min_snr", "objective.denoising.space=output"),
            "^objective.denoising.space must be noise for weights by SNR, which are .*, got output",
        ),
        (("distance=huber", "distance.delta=-1"), "^distance.delta must be above 0, got -1"),
        (
            ("trainer.limit_val_batches=0.001",),
            "^trainer.limit_val_batches=0.001: must leave at least one of 1 held-out",
        ),
        (("timesteps=importance", "timesteps.decay=1.0"), r"timesteps.decay must lie in \[0, 1\), got 1.0"),
        (("lr_schedule=cosine",), None),
        (("lr_schedule=cosine", "lr_schedule.warmup_steps=20"), r"lr_schedule.warmup_steps must lie in \[0, 20\), the"),
        (
            ("lr_schedule=linear", "trainer.max_steps=-1"),
            "lr_schedule: a fall needs an end: trainer.max_steps or trainer.max_epochs, got -1",
        ),
        (
            ("lr_schedule=linear", "lr_schedule.min_lr=1.0"),
            "lr_schedule.min_lr must lie in .*, up to optimizer.lr, got",
        ),
        (("module.offset_noise=-1.0",), "module.offset_noise must be at least 0, got -1.0"),
        (("data.overfit=0",), "data.overfit must be at least 1, got 0"),
        (("data.overfit=5000",), r"data.overfit must lie in \[1, 1347\], the training images, got 5000"),
        (("callbacks.samples.every_n_epochs=0",), "callbacks.samples.every_n_epochs must be at least 1, got 0"),
    ],
)
def test_what_does_not_fit_together_is_refused(configure, tmp_path, overrides, message):
    if message is None:
        train(configure("experiment=smoke", *overrides, *SMOKE[1:], "trainer.max_steps=4"))
        return
    base = [o for o in SMOKE if not (o == "callbacks.samples=null" and "samples" in overrides[0])]
    with pytest.raises(Refusal, match=message) as refusal:
        train(configure(*base, *overrides))
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_one_batch_is_learned_by_heart(configure, capsys):
    loss = train(configure("debug=overfit", "callbacks.progress=null", "+trainer.enable_progress_bar=false"))
    assert loss < 0.02
    assert "of 16 samples match" in capsys.readouterr().out


def test_a_batch_that_is_not_learned_says_so(configure, tmp_path):
    quick = ("callbacks.progress=null", "+trainer.enable_progress_bar=false", "trainer.max_steps=60")
    with pytest.raises(Failure) as failure:
        train(configure("debug=overfit", *quick, "callbacks.samples=null"))
    assert "the batch is not learned: the loss is" in str(failure.value)
    assert "samples match an image of the batch" in str(failure.value)
    assert last(tmp_path / "run")["global_step"] == 60  # nothing is lost
    assert (tmp_path / "run" / "report.md").is_file()


def test_a_profile_names_the_operations_that_take_the_time(configure, tmp_path):
    train(configure("debug=profile", "callbacks.progress=null", "+trainer.enable_progress_bar=false"))
    assert "aten::" in (tmp_path / "run" / "fit-profile.txt").read_text()


@pytest.mark.slow
def test_wandb_gets_scalars_and_pictures_offline(configure, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.chdir(tmp_path)
    samples = [option for option in SMOKE if option != "callbacks.samples=null"]
    train(configure(*samples, "logger=wandb", "logger.wandb.offline=true"))
    [offline] = (tmp_path / "run" / "wandb").glob("offline-run-*")
    assert len(list(offline.rglob("media/images/samples_*.png"))) == 2
    assert len(list(offline.rglob("media/images/denoising_*.png"))) == 2
    [data] = offline.glob("*.wandb")
    content = data.read_bytes()
    for name in (b"train/loss", b"val/loss_raw", b"final/val_loss"):
        assert name in content


def test_checkpoints_and_grids_come_every_so_many_epochs(configure, tmp_path):
    """Four epochs of five steps, whenever validations are."""
    epochs = ("trainer.max_steps=-1", "trainer.max_epochs=4", "data.batch_size=256", "trainer.val_check_interval=7")
    every = ("callbacks.checkpoint.every_n_train_steps=null", "callbacks.checkpoint.every_n_epochs=2")
    every += ("callbacks.samples.every_n_train_steps=null", "callbacks.samples.every_n_epochs=1")
    options = [option for option in SMOKE if not option.startswith(("callbacks.samples", "callbacks.checkpoint"))]
    train(configure(*options, *QUIET, *epochs, *every))
    kept = {path.stem for path in (tmp_path / "run" / "checkpoints").glob("step-*")}
    assert kept == {"step-0000010", "step-0000020"}
    drawn = {path.stem for path in (tmp_path / "run" / "samples").glob("*.png")}
    assert drawn == {f"step-00000{step:02d}" for step in (5, 10, 15, 20)}


def test_only_the_newest_checkpoints_stay_and_last_is_none_of_them(configure, tmp_path):
    often = ("callbacks.checkpoint.every_n_train_steps=3", "callbacks.checkpoint.keep=2", "trainer.max_steps=11")
    options = [option for option in SMOKE if not option.startswith("callbacks.checkpoint")]
    train(configure(*options, *QUIET, *often))
    folder = tmp_path / "run" / "checkpoints"
    steps = {p.name: torch.load(p, weights_only=True)["global_step"] for p in folder.iterdir()}
    assert steps == {"step-0000006.ckpt": 6, "step-0000009.ckpt": 9, "last.ckpt": 11}


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ((), ("objective=bound",), "^objective.bound: must be not there, as when"),
        ((), ("objective=adversarial",), "^objective.adversarial: must be not there"),
        (("objective=hybrid",), (), "^objective.bound: must be .*VariationalBound, as when"),
        ((), ("callbacks.ema=null",), "^callbacks.ema: must be .*EMA, as when"),
        (("callbacks.ema=null",), (), "^callbacks.ema: must be not there"),
        ((), ("module.offset_noise=0.1",), "^module.offset_noise=0.1: must be 0.0, with which"),
        ((), ("objective.denoising.space=output",), "^objective.denoising.space=output: must be noise, with which"),
        (
            ("objective=hybrid",),
            ("objective=hybrid", "objective.bound.weight=1.0"),
            "^objective.bound.weight=1.0: must",
        ),
        (
            (),
            ("callbacks.ema.decay=[0.9999,0.9]",),
            r"^callbacks.ema.decay=\[0.9999, 0.9\]: must be 0.9999, with which",
        ),
    ],
)
def test_a_run_goes_on_with_the_objective_and_the_averages_it_began_with(configure, before, after, message):
    train(configure(*SMOKE, *QUIET, "trainer.max_steps=2", *before))
    with pytest.raises(Refusal, match=message):
        train(configure(*SMOKE, *QUIET, "trainer.max_steps=4", *after))


@pytest.mark.parametrize("accumulate", [1, 3])
def test_images_seen_count_every_batch_of_a_step(configure, tmp_path, accumulate):
    train(configure(*SMOKE, *QUIET, "trainer.max_steps=4", f"trainer.accumulate_grad_batches={accumulate}"))
    assert last(tmp_path / "run")["images_seen"] == 4 * 32 * accumulate


def test_one_batch_to_learn_is_spread_over_the_set(configure):
    from hydra.utils import instantiate

    data = instantiate(configure("data.overfit=16").data, _convert_="all")
    images, labels = data.split("train")
    assert len({image.numpy().tobytes() for image in images}) == 16
    assert torch.equal(images, data.split("val").images)
    whole = instantiate(configure().data, _convert_="all").split("train")
    assert torch.equal(images[3], whole.images[3 * 1347 // 16])
    assert torch.equal(labels[3], whole.labels[3 * 1347 // 16])
