"""Runs that can't go on: a loss that is no number, memory that ran out, a disk that is full."""

import inspect
import resource
import signal
import subprocess
import sys

import pytest
import torch

from ddpm_lightning.checkpoint import AtomicCheckpointIO
from ddpm_lightning.diffusion.denoiser import Denoiser
from ddpm_lightning.nn.unet import UNet
from ddpm_lightning.runs.refusal import CONF, Failure
from ddpm_lightning.runs.train import train

SMOKE = (
    *("experiment=smoke", "callbacks.progress=null", "+trainer.enable_progress_bar=false", "trainer.accelerator=cpu"),
    *("callbacks.samples=null", "callbacks.best=null", "callbacks.checkpoint.every_n_train_steps=4"),
)


@pytest.fixture
def poison(monkeypatch):
    """Makes the network's output at one call of training not a number, for images of the last quarter of T."""

    def at(call, quarter=4, value=float("nan")):
        calls = [0]
        original = Denoiser.outputs

        def poisoned(self, x_t, t, label=None):
            output, fraction = original(self, x_t, t, label)
            if self.training:
                calls[0] += 1
                if calls[0] == call:
                    T = self.schedule.num_steps
                    hit = (t - 1) * 4 // T == quarter - 1
                    assert hit.any()
                    output = output * torch.where(hit, value, 1.0).view(-1, 1, 1, 1)
            return output, fraction

        monkeypatch.setattr(Denoiser, "outputs", poisoned)

    return at


def last(folder):
    return torch.load(folder / "run" / "checkpoints" / "last.ckpt", weights_only=True)


@pytest.mark.parametrize("quarter", [1, 4])
def test_a_loss_that_is_no_number_stops_the_run_and_names_where_to_go_back_to(configure, tmp_path, poison, quarter):
    poison(7, quarter)
    with pytest.raises(Failure) as failure:
        train(configure(*SMOKE))
    line = str(failure.value)
    assert f"stopped at step 7: the loss is not finite, in quarter {quarter} of T" in line
    assert "on_nan=skip goes back to" in line
    assert "last.ckpt, of step 4" in line
    assert "\n" not in line
    assert last(tmp_path)["global_step"] == 4
    assert all(value.isfinite().all() for value in last(tmp_path)["state_dict"].values())


def test_an_infinite_loss_before_the_first_checkpoint_says_that_there_is_none(configure, tmp_path, poison):
    poison(2, value=float("inf"))
    with pytest.raises(Failure, match="stopped at step 2: .*there is no checkpoint to go back to yet"):
        train(configure(*SMOKE))
    assert not (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()


def test_no_checkpoint_of_bad_weights_is_written_at_the_very_step(configure, tmp_path, poison):
    poison(8)  # when last.ckpt is due
    with pytest.raises(Failure, match="stopped at step 8"):
        train(configure(*SMOKE))
    assert last(tmp_path)["global_step"] == 4


def test_what_is_to_be_skipped_is_left_out_and_the_rest_goes_on(configure, tmp_path, poison, capsys):
    """The weights after the skipped step are those before it; the run ends with numbers."""
    poison(7)
    train(configure(*SMOKE, "on_nan=skip", "callbacks.checkpoint.every_n_train_steps=1", "trainer.max_steps=6"))
    before = last(tmp_path)["state_dict"]
    poison(1)  # the seventh of the whole run
    train(configure(*SMOKE, "on_nan=skip", "callbacks.checkpoint.every_n_train_steps=1", "trainer.max_steps=7"))
    assert "step 7 is left out: its gradient is not finite" in capsys.readouterr().out
    after = last(tmp_path)
    assert after["global_step"] == 7
    for name, value in after["state_dict"].items():
        assert torch.equal(value, before[name]), name
    loss = train(configure(*SMOKE, "on_nan=skip", "trainer.max_steps=20"))
    assert 0 < loss < 2


def test_the_same_command_with_skip_goes_on_after_a_stop(configure, tmp_path, poison):
    poison(7)
    with pytest.raises(Failure):
        train(configure(*SMOKE))
    poison(3)  # the seventh again, counted from step 4
    train(configure(*SMOKE, "on_nan=skip"))
    assert last(tmp_path)["global_step"] == 20


def test_a_gradient_alone_that_is_not_finite_stops_the_run_too(configure, monkeypatch):
    from ddpm_lightning.module import DiffusionModule

    original = DiffusionModule.on_after_backward

    def poisoned(self):
        original(self)
        if self.trainer.global_step == 4:
            self.denoiser.net.stem.weight.grad[0] = float("inf")

    monkeypatch.setattr(DiffusionModule, "on_after_backward", poisoned)
    with pytest.raises(Failure, match="stopped at step 5: the gradient is not finite"):
        train(configure(*SMOKE))


def test_where_losses_are_not_read_at_each_step_no_checkpoint_gets_past_a_bad_one(
    configure, tmp_path, monkeypatch, poison
):
    """As on a GPU: only the loggers' steps, which never come here, and checkpoints look."""
    from ddpm_lightning.callbacks.non_finite import NonFinite

    looks = []
    original = NonFinite.look

    def look(self, trainer):
        if "on_train_batch_end" not in {frame.function for frame in inspect.stack()[1:2]}:
            looks.append(trainer.global_step)
            original(self, trainer)

    monkeypatch.setattr(NonFinite, "look", look)
    poison(6)
    with pytest.raises(Failure, match="stopped at step 6: the loss is not finite, in quarter 4 of T"):
        train(configure(*SMOKE))
    assert looks == [4, 8]
    assert last(tmp_path)["global_step"] == 4


def test_a_bad_batch_is_counted_to_the_step_it_belongs_to(configure, poison):
    poison(7)  # the first of two batches of step 4
    with pytest.raises(Failure, match="stopped at step 4: the loss is not finite"):
        train(configure(*SMOKE, "trainer.accumulate_grad_batches=2"))


def test_a_run_whose_every_step_must_be_left_out_is_lost(configure, tmp_path):
    lost = ("on_nan=skip", "optimizer.lr=1e30", "trainer.gradient_clip_val=null", "trainer.max_steps=100")
    with pytest.raises(Failure, match="10 steps in a row had no finite gradient"):
        train(configure(*SMOKE, *lost))


@pytest.mark.slow
def test_two_processes_stop_together_when_one_of_them_has_no_number(script, tmp_path):
    """In the second process alone; the command ends by itself, in one line, soon."""
    patch = """
import hydra, os
from ddpm_lightning.runs.command import job, run
from ddpm_lightning.diffusion.denoiser import Denoiser
original, calls = Denoiser.outputs, [0]
def poisoned(self, x_t, t, label=None):
    output, fraction = original(self, x_t, t, label)
    calls[0] += self.training
    if self.training and calls[0] == 7 and os.environ.get("LOCAL_RANK") == "1":
        output = output * float("nan")
    return output, fraction
Denoiser.outputs = poisoned

@hydra.main(version_base="1.3", config_path=CONF, config_name="train")
@job
def main(cfg):
    from ddpm_lightning.runs.train import train
    return train(cfg)

run(main)
"""
    path = tmp_path / "train.py"
    path.write_text(patch.replace("CONF", repr(str(CONF))))
    arguments = [*SMOKE[:1], *SMOKE[3:], "name=two", "trainer=ddp_cpu"]
    command = [sys.executable, str(path), *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 1, done.stderr
    assert "stopped at step 7: the loss is not finite, in quarter 1, 2, 3, 4 of T" in done.stderr
    assert "Traceback" not in done.stderr
    file = tmp_path / "runs" / "two" / "checkpoints" / "last.ckpt"
    assert torch.load(file, weights_only=True)["global_step"] == 4


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_memory_that_ran_out_names_the_batch_and_what_to_try(configure, monkeypatch, error):
    def forward(self, *args):
        raise error

    monkeypatch.setattr(UNet, "forward", forward)
    monkeypatch.setattr("ddpm_lightning.runs.describe.flops", lambda module: 1)
    with pytest.raises(Failure) as failure:
        train(configure(*SMOKE))
    line = str(failure.value)
    assert line.startswith("out of memory with data.batch_size=32 (data.eval_batch_size=450): try less")
    for way_out in ("trainer.accumulate_grad_batches", "model.checkpointing=true", "trainer.precision=bf16-mixed"):
        assert way_out in line


def test_cpu_memory_that_really_ran_out_is_recognised():
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        torch.empty(2**60)


def test_other_errors_keep_their_traceback(configure, monkeypatch):
    def forward(self, *args):
        raise RuntimeError("planted")

    monkeypatch.setattr(UNet, "forward", forward)
    monkeypatch.setattr("ddpm_lightning.runs.describe.flops", lambda module: 1)
    with pytest.raises(RuntimeError, match="planted"):
        train(configure(*SMOKE))


@pytest.fixture
def little_space():
    """Files of this process can't grow beyond a size: the kernel's own refusal, as of a full disk."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def limit(size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_leaves_the_checkpoint_before_whole(tmp_path, little_space):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"weights": torch.ones(1000)}, path)
    before = path.read_bytes()
    little_space(50_000)
    with pytest.raises(Exception, match=r"."):
        AtomicCheckpointIO().save_checkpoint({"weights": torch.ones(1_000_000)}, path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("model", ["unet_tiny", "unet_8"])
def test_a_run_on_a_full_disk_ends_in_one_line_and_goes_on_when_there_is_space(
    configure, tmp_path, little_space, model
):
    """Of files of more than a megabyte torch hides the reason behind an error of its own."""
    quiet = (*SMOKE, f"model={model}", "logger.tensorboard=null", "logger.csv=null", "callbacks.lr=null")
    train(configure(*quiet, "trainer.max_steps=4"))
    size = (tmp_path / "run" / "checkpoints" / "last.ckpt").stat().st_size
    before = last(tmp_path)
    little_space(size // 2)
    with pytest.raises(Failure, match=r"run can't be written .*its checkpoints are whole"):
        train(configure(*quiet, "trainer.max_steps=12"))
    after = last(tmp_path)
    assert after["global_step"] == before["global_step"] == 4
    little_space(resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    train(configure(*quiet, "trainer.max_steps=12"))
    assert last(tmp_path)["global_step"] == 12


def test_a_failed_run_ends_in_one_line_and_exit_code_1(script):
    done = script("train.py", *SMOKE, "optimizer.lr=1e30", "trainer.gradient_clip_val=null", check=1)
    assert "stopped at step" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1


def test_impossible_settings_are_refused(configure):
    from ddpm_lightning.runs.refusal import Refusal

    with pytest.raises(Refusal, match="^on_nan must be one of stop, skip, got explode"):
        train(configure(*SMOKE, "on_nan=explode"))
