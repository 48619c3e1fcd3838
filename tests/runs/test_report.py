"""The report of a run says what happened in it: hand-made folders whose figures are known, and real runs."""

import json
import os
import signal

import numpy as np
import pytest
import torch
from filelock import FileLock
from omegaconf import OmegaConf
from PIL import Image

from ddpm_lightning.callbacks.sample_grid import SampleGrid
from ddpm_lightning.images import grid
from ddpm_lightning.module import DiffusionModule
from ddpm_lightning.runs.curves import curve, read_log, smooth, spread
from ddpm_lightning.runs.pictures import CAPTION_WIDTH, STRIP_WIDTH, draw_progression
from ddpm_lightning.runs.refusal import Refusal
from ddpm_lightning.runs.report import write_report
from ddpm_lightning.runs.train import train

SMOKE = (
    *("experiment=smoke", "callbacks.progress=null", "+trainer.enable_progress_bar=false", "trainer.accelerator=cpu"),
    *("logger.tensorboard=null", "trainer.log_every_n_steps=1"),
)
FACTS = {
    "name": "x",
    "training_images": 1000,
    "held_out_images": 10,
    "image_shape": [1, 8, 8],
    "num_classes": None,
    "parameters": 1_500_000,
    "parameters_by_part": {"down": 1_000_000, "up": 500_000},
    "flops": 2_000_000_000,
    "batch_size": 50,
    "devices": 4,
    "accumulated": 2,
    "batch": 400,
    "steps": 20,
    "epochs": 8.0,
    "device": "abacus",
    "precision": "32-true",
    "versions": {"torch": "9"},
    "starts": [{"time": "noon", "step": 0}],
}


@pytest.fixture
def folder(configure, tmp_path):
    """A run folder that has nothing but its configuration."""
    (tmp_path / "run").mkdir()
    OmegaConf.save(configure("name=x", "trainer.max_steps=20"), tmp_path / "run" / "config.yaml", resolve=True)
    return tmp_path / "run"


def log(folder, version, text):
    (folder / "csv" / f"version_{version}").mkdir(parents=True)
    (folder / "csv" / f"version_{version}" / "metrics.csv").write_text(text)


def finish(folder, **result):
    done = {"step": 20, "max_steps": 20, "max_epochs": -1, "metrics": {"val_loss": 0.125}, **result}
    (folder / "result.json").write_text(json.dumps(done))


def stop_at(monkeypatch, step):
    """Have the run asked to stop in the middle of the step."""
    original = DiffusionModule.training_step

    def stopping(self, *batch):
        if self.global_step == step - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *batch)

    monkeypatch.setattr(DiffusionModule, "training_step", stopping)


def test_a_later_start_takes_the_place_of_the_steps_it_repeats(folder):
    """Three starts: the second went on from step 10, when the first had come to 20; the third from 15."""
    log(folder, 0, "epoch,step,train/loss,val/loss\n0,4,1,\n0,9,2,\n0,9,,7\n0,14,3,\n0,19,4,\n")
    log(folder, 2, "epoch,extra,step,train/loss,val/loss\n0,8,14,30,\n0,8,19,40,\n0,,19,,70\n")
    log(folder, 10, "epoch,step,train/loss\n0,19,400\n0,24,5e2\n0,2")
    rows = read_log(folder)
    assert curve(rows, "train/loss") == ([5, 10, 15, 20, 25], [1, 2, 30, 400, 500])
    assert curve(rows, "val/loss") == ([10], [7])
    assert curve(rows, "none") == ([], [])


def test_smoothing_keeps_straight_lines_and_takes_out_noise():
    line = [3.0 * i + 1 for i in range(2000)]
    assert smooth(line) == pytest.approx(line)
    noise = [float((-1) ** i) for i in range(2000)]
    assert np.abs(smooth(noise)[11:-11]).max() == pytest.approx(1 / 23)  # over 23 values
    assert smooth(noise[:20]) == noise[:20]


def test_grids_are_chosen_evenly_over_training():
    assert spread([10, 20, 30], 6) == [10, 20, 30]
    assert spread(list(range(1, 102)), 6) == [1, 21, 41, 61, 81, 101]
    assert spread([1, 2, 3, 4, 5, 50, 51, 100], 3) == [1, 50, 100]  # over steps, not over files


@pytest.mark.parametrize(
    ("side", "columns", "shown"), [(8, 10, (3, 10)), (8, 30, (3, 17)), (64, 4, (2, 4)), (256, 8, (1, 3))]
)
def test_the_progression_shows_whole_images_at_their_own_size(tmp_path, side, columns, shown):
    grids, expected = {}, []
    for step in (100, 2000):
        images = torch.randint(0, 256, (4 * columns, 3, side, side), dtype=torch.uint8)
        array = grid(images, columns).permute(1, 2, 0).numpy()
        grids[step] = tmp_path / f"{step}.png"
        Image.fromarray(array).save(grids[step])
        cell = max(48, side) + 2
        expected.append(array[: shown[0] * cell + 2, : shown[1] * cell + 2])
    draw_progression(grids, (3, side, side), tmp_path / "out.png")
    picture = np.array(Image.open(tmp_path / "out.png"))
    assert picture.shape[1] <= CAPTION_WIDTH + STRIP_WIDTH
    top, bottom = picture[: len(expected[0])], picture[-len(expected[1]) :]
    assert np.array_equal(top[:, CAPTION_WIDTH:], expected[0])
    assert np.array_equal(bottom[:, CAPTION_WIDTH:], expected[1])
    assert top[:, :CAPTION_WIDTH].min() < 128  # its step is written there


def test_what_is_missing_is_said_in_words(folder):
    text = write_report(folder).read_text()
    assert text.startswith("# x: stopped before its first checkpoint\n")
    for said in ("no `run.json`", "None were logged", "No sample grids", "None yet: `python scripts/evaluate.py"):
        assert said in text
    assert "| held-out loss | none was logged |" in text
    assert not list((folder / "report").iterdir())


def test_the_facts_follow_from_what_was_recorded(folder):
    (folder / "run.json").write_text(json.dumps(FACTS))
    finish(folder, train_seconds=1800.0)
    header = "step,train/images_per_s,train/share_of_peak,train/loss,val/loss,val/loss_raw"
    log(folder, 0, f"{header}\n4,100,.1,nan,,\n9,300,.3,.2,,\n14,200,.2,.1,.3,.4\n")
    text = write_report(folder).read_text()
    assert text.startswith("# x: finished at step 20\n")
    for row in (
        "| parameters | 1,500,000: down 1,000,000, up 500,000 |",
        "| forward pass | 2 GFLOP per image |",
        "| batch | 400 = 50 x 4 devices x 2 accumulated |",
        "| steps | 20, 20 planned |",
        "| epochs | 8.0, of 1000 images |",
        "| images seen | 8000 |",
        "| device hours | 2 = 4 x 1800 s |",
        "| images per second | 200 (median) |",
        "| share of the device's peak | 20.0% (median) |",
        "| held-out loss | 0.1250 (averaged weights) |",
        "| schedule | LinearSchedule(num_steps=1000, beta_start=0.0001, beta_end=0.02, zero_terminal_snr=False) |",
    ):
        assert row in text
    assert OmegaConf.create(text.partition("```yaml\n")[2].partition("```")[0]) == OmegaConf.load(
        folder / "config.yaml"
    )
    assert np.array(Image.open(folder / "report" / "loss.png")).std() > 1


def test_a_run_that_was_made_longer_is_not_finished_by_its_first_end(folder):
    finish(folder, max_steps=10, step=10)
    assert "stopped at step 10" in write_report(folder).read_text()
    with FileLock(folder / ".lock"):
        assert "going on, with its last checkpoint at step 10" in write_report(folder).read_text()


def test_the_newest_evaluation_is_shown_with_its_protocol(folder):
    (folder / "evaluation").mkdir()
    for i, name in enumerate("bac"):
        file = folder / "evaluation" / f"{name}.json"
        file.write_text(json.dumps({"metrics": {"fid": float(i)}, "line": f"FID-50k {i} | and so on"}))
        os.utime(file, (i, i))
    text = write_report(folder).read_text()
    assert "| fid | 2.0000 |" in text
    assert "\nFID-50k 2 | and so on\n" in text
    assert "`evaluation/c.json`, the newest of 3" in text
    other = {"metrics": {"psnr_ddim": None, "mse_ddim": 0.0}, "protocol": {}, "line": "PSNR inf dB | all of it"}
    (folder / "evaluation" / "reconstruction.json").write_text(json.dumps(other))
    text = write_report(folder).read_text()
    assert "| psnr_ddim | inf |" in text
    assert "PSNR inf dB | all of it" in text


def test_a_real_run_ends_with_its_report(configure, tmp_path):
    loss = train(configure(*SMOKE, "trainer.max_steps=14", "trainer.accumulate_grad_batches=2"))
    text = (tmp_path / "run" / "report.md").read_text()
    assert text.startswith("# smoke: finished at step 14\n")
    assert f"| epochs | {14 * 64 / 1347:.1f}, of 1347 images |" in text
    assert f"| held-out loss | {loss:.4f} (averaged weights) |" in text
    rows = read_log(tmp_path / "run")
    assert curve(rows, "train/loss").steps == list(range(1, 15))
    assert curve(rows, "lr-AdamW").steps == list(range(1, 15))
    assert curve(rows, "val/loss").steps == [5, 10, 14]  # every 10 batches, and after the end
    assert {path.name for path in (tmp_path / "run" / "report").iterdir()} == {"loss.png", "progression.png"}
    for link in ("report/loss.png", "report/progression.png", "samples/step-0000014.png"):
        assert f"]({link})" in text
        assert (tmp_path / "run" / link).is_file()


def test_the_printed_lines_and_the_record_agree_on_the_shorter_limit(configure, tmp_path, capsys):
    train(configure(*SMOKE, "trainer.max_epochs=1", "data.batch_size=400", "callbacks.samples=null"))
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert "; 3 steps, 0.9 epochs, 1200 images" in capsys.readouterr().out
    assert (facts["steps"], facts["epochs"]) == (3, 1200 / 1347)
    weights = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["ema"]["averages"]["0.9999"]
    assert facts["parameters"] == sum(weight.numel() for weight in weights.values())
    assert facts["parameters"] == sum(facts["parameters_by_part"].values())


def test_seconds_of_training_add_up_over_starts(configure, tmp_path, monkeypatch):
    """A clock that only training steps, validation steps and sample grids move; and the nights between two starts."""
    now = [0.0]

    def takes(cls, name, seconds):
        original = getattr(cls, name)

        def timed(self, *arguments):
            now[0] += seconds
            return original(self, *arguments)

        monkeypatch.setattr(cls, name, timed)

    monkeypatch.setattr("ddpm_lightning.callbacks.save_config.monotonic", lambda: now[0])
    for cls, name, seconds in (
        (DiffusionModule, "training_step", 1),
        (DiffusionModule, "validation_step", 100),
        (SampleGrid, "draw", 10_000),
    ):
        takes(cls, name, seconds)
    limits = ("trainer.max_steps=8", "trainer.val_check_interval=4", "callbacks.samples.every_n_train_steps=4")
    file = tmp_path / "run" / "checkpoints" / "last.ckpt"
    for stop, seconds in ((3, 3), (6, 10_106)):
        with monkeypatch.context() as patch:
            stop_at(patch, stop)
            with pytest.raises(SystemExit):
                train(configure(*SMOKE, *limits))
        now[0] += 1e6
        assert torch.load(file, weights_only=True)["train_seconds"] == seconds
    text = write_report(tmp_path / "run").read_text()
    assert text.startswith("# smoke: stopped at step 6 of 8\n")
    assert "| epochs | 0.1, of 1347 images |" in text
    assert f"| device hours | {10_106 / 3600:.3g} = 1 x 10106 s |" in text
    train(configure(*SMOKE, *limits))
    total = 8 + 2 * 100 + 3 * 10_000  # the grid of the last step is asked for once more at the end
    assert json.loads((tmp_path / "run" / "result.json").read_text())["train_seconds"] == total
    assert torch.load(file, weights_only=True)["train_seconds"] == total
    starts = json.loads((tmp_path / "run" / "run.json").read_text())["starts"]
    assert [start["step"] for start in starts] == [0, 3, 6]


def test_checkpoints_without_seconds_go_on_and_none_are_made_up(configure, tmp_path):
    train(configure(*SMOKE, "trainer.max_steps=2", "callbacks.samples=null"))
    file = tmp_path / "run" / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(file, weights_only=True)
    del checkpoint["train_seconds"]
    torch.save(checkpoint, file)
    train(configure(*SMOKE, "trainer.max_steps=3", "callbacks.samples=null"))
    text = (tmp_path / "run" / "report.md").read_text()
    assert text.startswith("# smoke: finished at step 3\n")
    assert "| device hours | not recorded |" in text


def test_a_report_that_fails_loses_no_run_and_is_not_silent(configure, tmp_path, monkeypatch):
    def broken(folder):
        raise KeyError("foo")

    monkeypatch.setattr("ddpm_lightning.runs.report.write_report", broken)
    with pytest.warns(UserWarning, match=r"the report was not written \(KeyError: 'foo'\); python scripts/report.py"):
        loss = train(configure(*SMOKE, "trainer.max_steps=2", "callbacks.samples=null"))
    assert json.loads((tmp_path / "run" / "result.json").read_text())["metrics"]["val_loss"] == loss


def test_the_script_writes_reports_and_refuses_other_folders_in_one_line(script, folder):
    done = script("report.py", "run", "nowhere", check=2)
    assert done.stdout == "run/report.md\n"
    refusal = "nowhere: must be the folder of a training run, such as runs/digits, with its config.yaml"
    assert done.stderr == f"report.py: {refusal}\n"


@pytest.mark.parametrize("text", ["a: 1", "[", "- 1"])
def test_a_folder_of_something_else_is_refused(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(Refusal, match="must be the folder of a training run"):
        write_report(tmp_path)
    assert len(list(tmp_path.iterdir())) == 1


def test_a_broken_checkpoint_is_named_in_one_line(folder):
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "last.ckpt").write_bytes(b"x")
    with pytest.raises(Refusal, match=r"run: must be a run with a whole last.ckpt \(.*can't be read safely"):
        write_report(folder)
