import json
import logging
import signal

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ddpm_lightning.checkpoint import load_denoiser
from ddpm_lightning.runs.refusal import Refusal
from ddpm_lightning.runs.train import train

SMOKE = ("experiment=smoke", "callbacks.progress=null", "+trainer.enable_progress_bar=false", "trainer.accelerator=cpu")


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """A finished smoke run."""
    from hydra import compose, initialize_config_dir

    from ddpm_lightning.runs.refusal import CONF

    folder = tmp_path_factory.mktemp("smoke")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        train(compose("train", overrides=[*SMOKE, f"output_dir={folder}", "callbacks.ema.decay=0.9"]))
    return folder


def test_checkpoints_are_plain_and_hold_the_averages_beside_the_weights(smoke):
    names = {path.name for path in (smoke / "checkpoints").iterdir()}
    assert names == {"last.ckpt", "best.ckpt", "step-0000010.ckpt", "step-0000020.ckpt"}
    for name in names:
        checkpoint = torch.load(smoke / "checkpoints" / name, weights_only=True)
        assert checkpoint["config"]["schedule"]["num_steps"] == 100
        assert list(checkpoint["ema"]["averages"]) == ["0.9"]
        own = checkpoint["state_dict"]["denoiser.net.stem.weight"]
        assert not torch.equal(own, checkpoint["ema"]["averages"]["0.9"]["net.stem.weight"])


def test_a_loaded_denoiser_has_the_weights_that_were_asked_for(smoke):
    checkpoint = torch.load(smoke / "checkpoints" / "last.ckpt", weights_only=True)
    ema, raw = (load_denoiser(smoke, weights).denoiser for weights in ("ema", "raw"))
    assert torch.equal(ema.net.stem.weight, checkpoint["ema"]["averages"]["0.9"]["net.stem.weight"])
    assert torch.equal(raw.net.stem.weight, checkpoint["state_dict"]["denoiser.net.stem.weight"])
    assert not ema.training
    assert ema.schedule.num_steps == 100
    with pytest.raises(ValueError, match="weights must be one of raw, ema, 0.9, those of .*last.ckpt, got best"):
        load_denoiser(smoke, "best")


def test_tensorboard_shows_losses_samples_and_the_configuration(smoke):
    events = EventAccumulator(str(smoke / "tensorboard"), {"images": 0}).Reload()
    scalars = set(events.Tags()["scalars"])
    assert scalars >= {"train/loss", "val/loss", "train/grad_norm", "lr-AdamW", "final/val_loss"}
    assert scalars >= {f"train/loss_q{q}" for q in (1, 2, 3, 4)}
    assert [image.step for image in events.Images("samples")] == [10, 20]
    steps = [event.step for event in events.Scalars("val/loss")]
    assert steps == [9, 19]  # Lightning counts from 0
    plugins = events.summary_metadata
    assert any("hparams" in tag for tag in plugins)


def test_the_csv_file_has_the_same_figures(smoke):
    header, *rows = (smoke / "csv" / "version_0" / "metrics.csv").read_text().splitlines()
    assert {"train/loss", "val/loss", "train/loss_q1", "train/grad_norm"} <= set(header.split(","))
    assert len(rows) >= 4


def test_a_held_out_loss_measured_after_the_end_is_logged_at_the_last_step(configure, tmp_path):
    train(configure(*SMOKE, "trainer.max_steps=5", "callbacks.samples=null"))
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [4]
    assert [event.step for event in events.Scalars("val/loss")] == [4]


def test_quarters_of_the_loss_average_to_the_loss(configure, tmp_path):
    """One step a log, so that each quarter is a part of the very batch: their weighted mean is the loss."""
    from ddpm_lightning.callbacks.loss_by_time import LossByTime

    logged, batches = {}, []
    original = LossByTime.on_train_batch_end

    def watched(self, trainer, pl_module, outputs, batch, batch_idx):
        t = (outputs["t"] - 1) * 4 // 100
        batches.append([(outputs["losses"][t == q].mean().item() if (t == q).any() else None) for q in range(4)])
        pl_module.log, log = lambda name, value: logged.__setitem__((len(batches), name), value), pl_module.log
        original(self, trainer, pl_module, outputs, batch, batch_idx)
        pl_module.log = log

    LossByTime.on_train_batch_end = watched
    try:
        train(configure(*SMOKE, "trainer.log_every_n_steps=1", "trainer.max_steps=3", "data.batch_size=4"))
    finally:
        LossByTime.on_train_batch_end = original
    for i, quarters in enumerate(batches, start=1):
        for q, value in enumerate(quarters, start=1):
            found = logged.get((i, f"train/loss_q{q}"))
            assert (found is None) == (value is None)
            assert value is None or found == pytest.approx(value, rel=1e-5)


def test_a_finished_run_says_so_and_loses_nothing(configure, capsys, tmp_path):
    first = train(configure(*SMOKE))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file() and path.suffix}
    capsys.readouterr()
    assert train(configure(*SMOKE)) == first
    assert "is finished: 20 steps" in capsys.readouterr().out
    after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file() and path.suffix}
    assert after == before


def test_a_finished_run_can_be_made_longer(configure, tmp_path):
    train(configure(*SMOKE))
    train(configure(*SMOKE, "trainer.max_steps=30"))
    assert torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 30
    assert json.loads((tmp_path / "run" / "result.json").read_text())["step"] == 30


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("resume=never",), "resume=never: .* holds a run; allowed: another name="),
        (
            ("schedule=cosine",),
            "schedule._target_=.*CosineSchedule: must be .*LinearSchedule, with which",
        ),
        (("optimizer.lr=1e-3",), "optimizer.lr=0.001: must be 0.0002, with which"),
        (("resume=elsewhere",), "resume=elsewhere: must be auto, never, or a checkpoint"),
    ],
)
def test_a_run_is_neither_overwritten_nor_changed_on_the_way(configure, tmp_path, overrides, message):
    train(configure(*SMOKE, "trainer.max_steps=2", "callbacks.samples=null"))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(Refusal, match=message):
        train(configure(*SMOKE, "trainer.max_steps=2", "callbacks.samples=null", *overrides))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_keys_that_an_older_version_lacked_do_not_stop_a_run(configure, tmp_path):
    train(configure(*SMOKE, "trainer.max_steps=2"))
    file = tmp_path / "run" / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(file, weights_only=True)
    del checkpoint["config"]["data"]["horizontal_flip"]
    torch.save(checkpoint, file)
    train(configure(*SMOKE, "trainer.max_steps=3", "trainer.log_every_n_steps=1", "callbacks.progress=null"))
    assert torch.load(file, weights_only=True)["global_step"] == 3


def test_resume_never_refuses_a_run_that_stopped_before_its_first_checkpoint(configure, tmp_path):
    train(configure(*SMOKE, "trainer.max_steps=2", "callbacks.checkpoint=null", "callbacks.best=null"))
    for file in (tmp_path / "run" / "checkpoints").glob("*"):
        file.unlink()
    with pytest.raises(Refusal, match="resume=never: .* holds a run"):
        train(configure(*SMOKE, "trainer.max_steps=2", "resume=never"))


def test_two_runs_do_not_share_a_folder(configure, tmp_path):
    (tmp_path / "run").mkdir()
    with FileLock(tmp_path / "run" / ".lock"), pytest.raises(Refusal, match="name: must be another one while a run"):
        train(configure(*SMOKE))
    train(configure(*SMOKE, "trainer.max_steps=1"))


def test_a_run_measured_in_epochs_says_that_it_is_finished(configure, capsys):
    epochs = ("trainer.max_steps=-1", "trainer.max_epochs=1", "data.batch_size=400")
    train(configure(*SMOKE, *epochs))
    train(configure(*SMOKE, *epochs))
    assert "is finished: 3 steps" in capsys.readouterr().out


def test_the_final_loss_is_that_of_the_averaged_weights(configure):
    """Measured after the end, or by the validation of the last step."""
    settings = (*SMOKE, "optimizer.lr=0.02", "callbacks.samples=null")
    within = train(configure(*settings, "trainer.val_check_interval=20", output_dir="a"))
    after = train(configure(*settings, "trainer.val_check_interval=1000", output_dir="b"))
    raw = train(configure(*settings, "callbacks.ema=null", output_dir="c"))
    assert within == after
    assert abs(raw - within) > 1e-3


def test_signals_and_learning_rate_are_left_as_they_should_be(configure, tmp_path):
    before = [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)]
    train(configure(*SMOKE, "trainer.max_steps=7", "lr_schedule.warmup_steps=100"))
    assert [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)] == before
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["lr_schedulers"][0]["last_epoch"] == 7  # counted in steps
    assert checkpoint["optimizer_states"][0]["param_groups"][0]["lr"] == pytest.approx(2e-4 * 8 / 100)


@pytest.mark.parametrize("guidance", [0.0, 3.0])
def test_grids_show_the_averaged_weights_without_dropout(configure, tmp_path, guidance):
    """As drawn from the checkpoint of the same step, by another way."""
    from ddpm_lightning.diffusion.guidance import GuidedDenoiser
    from ddpm_lightning.diffusion.samplers.ddim import DDIMSampler
    from ddpm_lightning.generation import generate
    from ddpm_lightning.images import grid, to_uint8

    more = ("model.dropout=0.5", "optimizer.lr=0.02", "callbacks.ema.decay=0.8", "callbacks.samples.seed=3")
    train(configure(*SMOKE, *more, f"callbacks.samples.guidance={guidance}"))
    pictures = {}
    for weights in ("ema", "raw"):
        denoiser = load_denoiser(tmp_path / "run", weights).denoiser
        denoiser = GuidedDenoiser(denoiser, guidance, null_label=10)
        labels = [i % 10 for i in range(20)]
        images = torch.cat(list(generate(denoiser, DDIMSampler(5), (1, 8, 8), range(3, 23), labels)))
        pictures[weights] = grid(to_uint8(images), 10, [str(label) for label in labels])
    drawn = torch.from_numpy(np.array(Image.open(tmp_path / "run" / "samples" / "step-0000020.png"))).permute(2, 0, 1)
    assert (drawn.int() - pictures["ema"].int()).abs().max() <= 1
    assert (drawn.int() - pictures["raw"].int()).abs().max() > 20


def test_a_run_can_go_on_from_another_runs_checkpoint(configure, tmp_path):
    train(configure(*SMOKE, "trainer.max_steps=5"))
    train(configure(*SMOKE, "trainer.max_steps=8", f"resume={tmp_path / 'run'}", output_dir="other"))
    assert torch.load(tmp_path / "other" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 8


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("trainer.precision=bf16-true",), "trainer.precision=bf16-true: must be one of 32-true, bf16-mixed"),
        (("trainer.precision=16-mixed",), "optimizer.fused=true: must be false for clipping"),
        (("trainer.gradient_clip_val=-1",), "trainer.gradient_clip_val=-1: must be above 0"),
        (("trainer.val_check_interval=0",), "trainer.val_check_interval=0: must be at least 1"),
        (("trainer.devices=999",), "trainer.devices=999: must lie in"),
        (("num_threads=0",), "num_threads=0: must be an integer of at least 1, or null"),
        (("seed=-1",), r"seed=-1: must lie in \[0, 2\^32\)"),
        (("data.batch_size=2000",), r"data.batch_size must lie in \[1, 1347\].*got 2000"),
        (("trainer.accumulate_grad_batches=50",), r"data.batch_size must lie in \[1, 26\].*got 32"),
        (("model.channel_mults=[1,1,1,1,1]",), "data.image_size must be divisible by 16.*got 8x8"),
        (("optimizer.lr=-1.0",), "optimizer: Invalid learning rate: -1.0; allowed: lr"),
        (("schedule.beta_end=1.5",), r"schedule.beta_end must lie in \[beta_start, 1\)"),
        (
            ("callbacks.ema.decay=1.5",),
            r"callbacks.ema.decay must lie in \[0, 1\), or be a list of different such, got 1.5",
        ),
        (("sampler.num_steps=101",), r"sampler.num_steps must lie in \[1, 100\].*got 101"),
        (("callbacks.samples.guidance=1.0", "model.num_classes=null"), "callbacks.samples.guidance=1.0: must be 0"),
        (("model.num_classes=5",), "model.num_classes=5: must be at least 10, or null"),
        (("model.channels=3",), r"model.channels, model.image_size=\(3, 8, 8\): must be those of the data"),
        (("trainer.limit_val_batches=0",), "trainer.limit_val_batches=0: must be above 0"),
        (("trainer.max_steps=0",), "trainer.max_steps=0: must be at least 1, or -1"),
        (
            ("trainer.check_val_every_n_epoch=1", "trainer.val_check_interval=50"),
            "trainer.val_check_interval=50: must be at most 42",
        ),
        (("callbacks.samples.guidance=1.0", "module.label_drop=0.0"), "must be 0 for module.label_drop=0"),
        (("data.seed=-1",), "data.seed must be at least 0, got -1"),
        (("data.device=abacus",), "data.device must be auto, cpu, cuda or another device of torch, got abacus"),
        (("optimizer.betas=[0.9]",), "optimizer: .*allowed: lr, weight_decay at least 0, betas two in"),
        (("+model.foo=1",), "model: .*unexpected keyword argument 'foo'"),
        (("data=image_folder", "data.root=nowhere"), "data.root must be a folder of images, got nowhere"),
    ],
)
def test_impossible_values_are_refused_before_anything_is_written(configure, tmp_path, overrides, message):
    with pytest.raises(Refusal, match=message) as refusal:
        train(configure(*SMOKE, *overrides))
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_other_precisions_train_with_clipping_and_a_fused_optimizer(configure, precision):
    loss = train(configure(*SMOKE, f"trainer.precision={precision}", "trainer.max_steps=3", "optimizer=adam"))
    assert 0.5 < loss < 1.5


def test_gradients_are_clipped(configure, monkeypatch):
    from ddpm_lightning.module import DiffusionModule

    norms = []
    original = DiffusionModule.configure_gradient_clipping

    def watched(self, *args, **kwargs):
        original(self, *args, **kwargs)
        norms.append(torch.stack([p.grad.norm() for p in self.parameters() if p.grad is not None]).norm().item())

    monkeypatch.setattr(DiffusionModule, "configure_gradient_clipping", watched)
    train(configure(*SMOKE, "trainer.gradient_clip_val=1e-3", "trainer.max_steps=3"))
    assert norms == pytest.approx([1e-3] * 3, rel=1e-2)


def test_training_without_averages_works_and_sampling_from_them_is_refused(configure, tmp_path):
    train(configure(*SMOKE, "callbacks.ema=null", "trainer.max_steps=2", "callbacks.samples=null"))
    load_denoiser(tmp_path / "run", "raw")
    with pytest.raises(ValueError, match="weights must be one of raw, those of"):
        load_denoiser(tmp_path / "run", "ema")


def test_the_run_describes_itself(configure, capsys):
    train(configure(*SMOKE, "trainer.max_steps=2", "callbacks.samples=null", "trainer.accumulate_grad_batches=2"))
    out = capsys.readouterr().out
    assert "smoke: 1347 training and 450 held-out images, 1x8x8, 10 classes" in out
    assert "GFLOP forward per image" in out
    assert "batch   64 = 32 x 1 devices x 2 accumulated; 2 steps, 0.1 epochs, 128 images" in out
    assert logging.getLogger("lightning.pytorch").level == logging.WARNING
