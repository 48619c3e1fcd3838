"""A run that was stopped and resumed ends as one that was not: weights, averages, optimizer, and order of the data."""

import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from conftest import ROOT

from ddpm_lightning.callbacks.last_checkpoint import LastCheckpoint
from ddpm_lightning.data.resident import TrainingLoader
from ddpm_lightning.runs.train import train

# 42 batches of 32 an epoch; 50 steps end in the second
RUN = (
    *("experiment=smoke", "trainer.max_steps=50", "model.dropout=0.3", "model.time_conditioning=additive"),
    *("trainer.val_check_interval=15", "callbacks.samples=null", "callbacks.checkpoint.keep=0"),
    *("callbacks.checkpoint.every_n_train_steps=20", "callbacks.progress=null", "+trainer.enable_progress_bar=false"),
    *("logger.tensorboard=null", "logger.csv=null", "callbacks.lr=null", "data.horizontal_flip=true"),
    *("lr_schedule=cosine", "trainer.accelerator=cpu"),
)


def final(folder):
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


def assert_same(a, b, path=""):
    """Bit for bit, through all containers."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            assert_same(a[key], b[key], f"{path}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), path
        for i, pair in enumerate(zip(a, b, strict=True)):
            assert_same(*pair, f"{path}[{i}]")
    else:
        assert a == b, path


@pytest.fixture
def order(monkeypatch):
    """The labels of every batch that is handed out, in order."""
    seen = []
    original = TrainingLoader.__iter__

    def watched(self):
        for batch in original(self):
            seen.append(tuple(batch[1].tolist()))
            yield batch

    monkeypatch.setattr(TrainingLoader, "__iter__", watched)
    return seen


def stop_at(monkeypatch, step, signum):
    """Send this process a signal in the middle of the step, as a user or a cluster would."""
    original = L.LightningModule.on_after_backward

    sent = []

    def signalling(self):
        if self.trainer.global_step == step - 1 and not sent:
            sent.append(signum)
            os.kill(os.getpid(), signum)
        original(self)

    monkeypatch.setattr(L.LightningModule, "on_after_backward", signalling)


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
def test_stopped_and_resumed_is_bit_for_bit_uninterrupted(configure, tmp_path, monkeypatch, order, accumulate):
    """Stopped in the middle of epochs, at their ends, at a validation, and at a checkpoint."""
    overrides = (*RUN, f"trainer.accumulate_grad_batches={accumulate}")
    train(configure(*overrides, output_dir="whole"))
    expected, expected_order = final(tmp_path / "whole"), list(order)
    epoch = 42 // accumulate
    for signum, stops in ((signal.SIGTERM, [1, 15, 16, epoch - 1]), (signal.SIGINT, [epoch, epoch + 1, 49])):
        for stop in stops:
            order.clear()
            folder = f"stopped{accumulate}-{stop}"
            with monkeypatch.context() as patch:
                stop_at(patch, stop, signum)
                with pytest.raises(SystemExit) as ended:
                    train(configure(*overrides, output_dir=folder))
            assert ended.value.code == 128 + signum
            assert final(tmp_path / folder)["global_step"] == stop
            train(configure(*overrides, output_dir=folder))
            assert order == expected_order, stop
            found = final(tmp_path / folder)
            for part in ("state_dict", "ema", "optimizer_states", "lr_schedulers", "global_step"):
                assert_same(found[part], expected[part], f"stop at {stop}: {part}")


@pytest.mark.slow
def test_killed_and_resumed_goes_on_from_the_last_file_to_the_same_end(configure, tmp_path, order):
    train(configure(*RUN, "name=killed", output_dir="runs/whole"))
    expected = final(tmp_path / "runs" / "whole")
    command = [
        sys.executable,
        str(ROOT / "scripts" / "train.py"),
        *RUN,
        "name=killed",
        "callbacks.checkpoint.every_n_train_steps=2",
    ]
    process = subprocess.Popen(command, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"})
    last = tmp_path / "runs" / "killed" / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + 120
    while not last.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)
    process.kill()
    process.wait()
    stopped = final(last.parent.parent)["global_step"]
    assert 2 <= stopped < 50
    train(configure(*RUN, "name=killed", output_dir="runs/killed"))
    for part in ("state_dict", "ema", "optimizer_states"):
        assert_same(final(last.parent.parent)[part], expected[part], part)


def test_signal_handlers_are_given_back():
    before = signal.getsignal(signal.SIGTERM)
    for end in ("on_exception", "on_train_end"):
        callback = LastCheckpoint("x", 1)
        trainer = SimpleNamespace(global_step=0, save_checkpoint=lambda path: None)
        callback.on_train_start(trainer, None)
        assert signal.getsignal(signal.SIGTERM) == callback._note
        getattr(callback, end)(trainer, None, *([RuntimeError()] if end == "on_exception" else []))
        assert signal.getsignal(signal.SIGTERM) == before


def test_a_second_ctrl_c_stops_at_once():
    callback = LastCheckpoint("x", 1)
    callback._note(signal.SIGINT, None)
    with pytest.raises(SystemExit) as ended:
        callback._note(signal.SIGINT, None)
    assert ended.value.code == 130


@pytest.mark.slow
def test_a_validation_that_is_due_comes_before_the_stop(configure, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at(patch, 15, signal.SIGTERM)
        with pytest.raises(SystemExit):
            train(configure(*RUN))
    best, last = (torch.load(tmp_path / "run/checkpoints" / f"{n}.ckpt", weights_only=True) for n in ("best", "last"))
    assert best["global_step"] == last["global_step"] == 15
    [score] = [state["best_model_score"] for key, state in last["callbacks"].items() if "val/loss" in key]
    assert 0.5 < score < 1.5
