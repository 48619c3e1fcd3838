"""scripts/benchmark.py at sizes of seconds: what it writes, not how fast anything is."""

import json
import re
from types import SimpleNamespace

import pytest
import torch

from benchmark import parse
from benchmarks.counting import convolution_limit
from benchmarks.memory import memory, peak
from benchmarks.ours import Clock
from benchmarks.sampling import sampling
from benchmarks.setting import Setting
from benchmarks.show import table
from benchmarks.startup import _seconds
from benchmarks.timing import in_turn, ratio
from benchmarks.train import TRAINER, comparisons, train

TINY = {"channels": 32, "size": 16, "batch": 2, "repeats": 1, "steps": 1}


@pytest.fixture
def peers():
    pytest.importorskip("diffusers")
    pytest.importorskip("denoising_diffusion_pytorch")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the peers'
def test_training_is_measured_beside_the_peers(tmp_path, capsys, peers):
    train(Setting(tmp_path, **TINY))
    found = json.loads((tmp_path / "train.json").read_text())
    rows = {(row["who"], row["precision"]): row for row in found["rows"]}
    assert len(rows) == 8
    assert all(row["images/s"] > 0 and "failed" not in row for row in rows.values())
    ours, theirs = (rows[who, "32-true"] for who in (TRAINER, "diffusers"))
    assert (ours["M params"], ours["GFLOP"]) == (theirs["M params"], theirs["GFLOP"])  # the same network
    assert rows["this project, bare step", "32-true"]["reads/step"] == 0
    assert rows["diffusers", "32-true"]["reads/step"] > 0
    assert len(found["compared"]) == 7
    assert (tmp_path / "train.png").stat().st_size > 1000
    assert "Trainer to diffusers' step, fp32" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_without_the_peers_ours_is_measured_and_a_line_says_what_to_install(tmp_path, capsys, monkeypatch):
    for package in ("diffusers", "denoising_diffusion_pytorch"):
        monkeypatch.setitem(__import__("sys").modules, package, None)
    train(Setting(tmp_path, **TINY))
    out = capsys.readouterr().out
    assert out.count("not installed: pip install -e '.[bench]'") == 4
    assert "Trainer's time to the bare step's" in out
    assert "Trainer to diffusers" not in out


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_memory_is_less_with_recomputed_activations(tmp_path, peers):
    memory(Setting(tmp_path, channels=32, batch=4))
    peaks = {
        (r["who"], r["precision"]): r.get("peak MB") for r in json.loads((tmp_path / "memory.json").read_text())["rows"]
    }
    plain, recomputing = (f"this project, bare step{more}" for more in ("", ", recomputing"))
    assert peaks[recomputing, "32-true"] < 0.55 * peaks[plain, "32-true"]
    assert peaks[recomputing, "32-true"] < peaks["diffusers, recomputing", "32-true"]
    assert peaks[plain, "32-true"] < 1.05 * peaks["diffusers", "32-true"]
    assert peaks["denoising-diffusion-pytorch, recomputing", "32-true"] is None


def test_the_peak_is_what_was_held_at_once():
    def step():
        first = torch.empty(1_000_000)
        del first
        both = torch.empty(2_000_000), torch.empty(500_000)
        del both

    assert peak(step, Setting(None)) == pytest.approx(10e6, rel=0.001)


def test_a_failure_is_told_and_stops_nobody_else():
    def broken():
        raise RuntimeError("out of luck\nat length")

    seconds, failed = in_turn({"a": lambda: 2.0, "broken": broken, "b": lambda: 1.0}, repeats=3)
    assert seconds == {"a": [2.0] * 3, "b": [1.0] * 3}
    assert failed == {"broken": "RuntimeError: out of luck"}
    assert ratio(seconds["a"], seconds["b"]) == 2
    assert "out of luck" in table([{"who": "a", "images/s": 1.5}, {"who": "broken", "failed": failed["broken"]}])


def test_the_limit_counts_the_convolutions_operations():
    """By a clock that stands still but for one second each time it is asked."""
    ticks = iter(range(100))
    # 10 times 2 x 9 x 8^2 x 16^2 operations for each of 2 images, in one second: the first size is the largest
    found = convolution_limit(16, 8, 2, lambda: float(next(ticks)), "cpu")
    assert found == 10 * 2 * 9 * 8 * 8 * 16 * 16 * 2


def test_help_and_a_refusal_come_within_seconds_and_a_broken_command_is_none():
    assert 0 < _seconds(["--help"]) < 60
    assert 0 < _seconds(["trainer.max_stepz=3"]) < 60
    with pytest.raises(RuntimeError, match="experiment=nothing ended with 2, not 0"):
        _seconds(["experiment=nothing"])


def test_the_comparisons_are_of_those_that_their_names_say():
    seconds = {
        "this project, Trainer|32-true": [2.0],
        "this project, bare step|32-true": [1.0],
        "again": [1.25],
        "diffusers|32-true": [8.0],
        "diffusers|bf16-mixed": [5.0],
        "this project, Trainer|bf16-mixed": [4.0],
        "this project, bare step|bf16-mixed": [3.2],
    }
    rows = [{"who": TRAINER, "of conv limit": 0.7}]
    assert list(comparisons(seconds, rows).values()) == [0.8, 4, 1.25, 2, 2, 1.25, 0.7]


def test_the_trainers_seconds_are_of_all_steps_between_two_starts_of_a_batch():
    """By a clock that is told the step, of two seconds each."""
    clock = Clock(SimpleNamespace(clock=lambda: 2.0 * trainer.global_step), 12)
    trainer = SimpleNamespace(global_step=0)
    for trainer.global_step in range(14):
        clock.on_train_batch_start(trainer, None, None, trainer.global_step)
    first, last = clock.read
    assert last - first == 24


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_samplers_are_measured_beside_a_peers_loop(tmp_path, peers):
    sampling(Setting(tmp_path, **TINY), None, 0)
    rows = {row["sampler"]: row for row in json.loads((tmp_path / "sampling.json").read_text())["rows"]}
    assert rows["AncestralSampler"]["operations on images"] == rows["AncestralSampler again"]["operations on images"]
    assert rows["AncestralSampler"]["operations on images"] < rows["diffusers' DDPMScheduler"]["operations on images"]
    assert all(row["us/step"] > 0 for row in rows.values())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--batch", "0"], "--batch must be at least 1, got 0"),
        (["--channels", "6"], "--channels must be a multiple of 32, got 6"),
        (["--dropout", "2"], "--dropout must lie in .* got 2"),
        (["--device", "foo"], "--device must be cpu, or one that is here, got foo"),
        (["--ckpt", "nowhere"], "--ckpt must be a run folder or a checkpoint, got nowhere"),
        (["--output", "/proc/version"], "--output must be a folder that can be written, got /proc/version"),
    ],
)
def test_bad_values_are_refused_before_anything_is_measured(arguments, said, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["benchmark.py", "train", *arguments])
    with pytest.raises(SystemExit) as stop:
        parse()
    assert stop.value.code == 2
    assert re.search(said, capsys.readouterr().err)
