"""The commands as a user types them, each in a process of its own."""

import csv
import json
import os
import time

import pytest

SMOKE = ("experiment=smoke", "callbacks.samples=null", "trainer.accelerator=cpu")


@pytest.mark.parametrize("name", ["train.py", "sample.py", "evaluate.py", "preview.py"])
def test_help_is_quick_and_shows_groups_and_keys(script, name):
    times = []
    for _ in range(3):  # the best of three, as the machine has other work
        start = time.monotonic()
        out = script(name, "--help").stdout
        times.append(time.monotonic() - start)
    assert min(times) < 1
    assert ("data: celeba," if name == "preview.py" else "sampler: ancestral, ddim, dpm_solver, heun, unipc") in out
    assert "python scripts/" in out


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("train.py", ["foo=1"], "foo=1: no such key; allowed: callbacks, data,"),
        ("train.py", ["+foo=1"], "foo=1: no such key; allowed: callbacks, data,"),
        (
            "train.py",
            ["schedule.num_step=5"],
            "schedule.num_step=5: no such key; allowed: beta_end, beta_start, num_steps",
        ),
        ("train.py", ["schedule=cosine", "schedule.beta_end=1"], "allowed: num_steps, offset"),
        ("train.py", ["data=foo"], "data=foo: no such option; allowed: celeba, celeba_hf, cifar10, digits,"),
        ("train.py", ["sweep=foo"], "sweep=foo: no such option; allowed: lr_ema"),
        ("train.py", ["sweep=lr_ema", "hydra.sweeper.n_trial=4"], "(did you mean n_trials?)"),
        ("train.py", ["schedule.num_steps=abc"], "train.py: schedule.num_steps=abc: must be an integer, such as 1000"),
        ("train.py", ["schedule.num_steps=10.5"], "schedule.num_steps=10.5: must be an integer"),
        ("train.py", ["optimizer.lr=nan"], "optimizer.lr=nan: must be a finite number, such as 0.002"),
        ("train.py", ["model.checkpointing=1"], "model.checkpointing=1: must be true or false, such as false"),
        ("train.py", ["model.channel_mults=[1,a]"], "model.channel_mults=a: must be an integer"),
        ("train.py", ["data=image_folder"], "data.root: must be given, as data.root=..."),
        ("train.py", ["schedule.num_steps="], "schedule.num_steps="),
        ("train.py", ["data.batch_size=[4"], "data.batch_size=[4: must be key=value"),
        ("train.py", ["model=null"], "model=null: must be one of unet_32, unet_32_deep, unet_64,"),
        ("train.py", ["seed=null"], "seed=null: must have a value, such as 0"),
        ("train.py", ["resume=true"], "resume=true: must be a text, such as auto"),
        ("train.py", ["~callbacks"], "can't be removed; allowed: another value"),
        ("sample.py", ["ckpt=x", "sampler=null"], "sampler=null: must be one of ancestral, ddim"),
        ("evaluate.py", ["ckpt=x", "weights=null"], "weights=null: must have a value"),
        ("sample.py", [], "ckpt: must be given, as ckpt=..."),
        ("sample.py", ["ckpt=x", "num_samples=few"], "num_samples=few: must be an integer, such as 100"),
    ],
)
def test_mistakes_end_in_one_line_and_exit_code_2_within_a_second(script, tmp_path, name, arguments, said):
    start = time.monotonic()
    done = script(name, *arguments, check=2)
    assert time.monotonic() - start < 3  # 0.4 s on an idle machine; without torch, which alone takes longer
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert not done.stdout
    assert not list(tmp_path.glob("runs/*"))


def test_the_traceback_is_there_for_those_who_ask(script):
    done = script("train.py", "foo=1", check=1, HYDRA_FULL_ERROR="1")
    assert "Traceback" in done.stderr


@pytest.mark.slow
def test_a_sweep_ends_in_one_table_and_a_refused_job_does_not_stop_the_others(script, tmp_path):
    quick = ("trainer.max_steps=3", "trainer.val_check_interval=3")
    done = script("train.py", "-m", *SMOKE, *quick, "name=sweep", "schedule.num_steps=50,-5,100", check=2)
    with open(tmp_path / "runs" / "sweep" / "summary.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["schedule.num_steps"] for row in rows] == ["50", "-5", "100"]
    assert [row["status"] for row in rows] == ["finished", "refused", "finished"]
    again = script(
        "train.py",
        "-m",
        *SMOKE,
        *quick,
        "name=sweep",
        "schedule.num_steps=50",
        "callbacks.ema._target_=ddpm_lightning.callbacks.ema.EMA,builtins.dict",
        check=1,
    )
    assert "-5" not in again.stdout.split("summary.csv")[-1]
    with open(tmp_path / "runs" / "sweep" / "summary.csv") as file:
        assert [(row["job"], row["status"]) for row in csv.DictReader(file)] == [("0", "finished"), ("1", "failed")]
    assert rows[1]["error"] == "schedule.num_steps must be an integer of at least 1, got -5"
    for row in (rows[0], rows[2]):
        result = json.loads((tmp_path / "runs" / "sweep" / row["job"] / "result.json").read_text())
        assert float(row["val_loss"]) == result["metrics"]["val_loss"] > 0
    table = done.stdout.split("summary.csv")[-1]
    assert f"{float(rows[2]['val_loss']):.5g}" in table
    assert "refused" in table
    assert done.stderr.count("schedule.num_steps must be") == 1


@pytest.mark.slow
def test_two_processes_train_one_model_on_different_noise(script, tmp_path):
    """Through Hydra, as a user starts it; every rank leaves a note of the times and images it trained on."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(
        """
import json, os, sys
if sys.argv and sys.argv[0].endswith("train.py"):
    from ddpm_lightning.module import DiffusionModule
    original = DiffusionModule.training_step
    def training_step(self, batch, batch_idx):
        out = original(self, batch, batch_idx)
        with open(f"rank{self.global_rank}.jsonl", "a") as file:
            note = {"t": out["t"].tolist(), "images": [str(image) for image in batch[0].flatten(1).tolist()]}
            print(json.dumps(note), file=file)
        return out
    DiffusionModule.training_step = training_step
"""
    )
    arguments = (*SMOKE[:2], "trainer=ddp_cpu", "trainer.max_steps=4", "trainer.val_check_interval=4", "name=ddp")
    done = script("train.py", *arguments, PYTHONPATH=os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")]))
    ranks = [[json.loads(line) for line in (tmp_path / f"rank{r}.jsonl").read_text().splitlines()] for r in (0, 1)]
    assert [len(notes) for notes in ranks] == [4, 4]
    for mine, others in zip(*ranks, strict=True):
        same = sum(a == b for a, b in zip(mine["t"], others["t"], strict=True))
        assert same < 8  # of 32; by chance 0.3
        assert not set(mine["images"]) & set(others["images"])
    assert done.stdout.count("finished at step 4") == 1
    assert (tmp_path / "runs" / "ddp" / "checkpoints" / "last.ckpt").is_file()


@pytest.mark.slow
def test_a_sweep_of_two_process_jobs_gives_both_ranks_the_same_job(script, tmp_path):
    quick = ("trainer=ddp_cpu", "trainer.max_steps=2", "trainer.val_check_interval=2", "name=both")
    done = script("train.py", "-m", *SMOKE[:2], *quick, "seed=0,1", timeout=400)
    with open(tmp_path / "runs" / "both" / "summary.csv") as file:
        rows = list(csv.DictReader(file))
    assert [(row["seed"], row["status"]) for row in rows] == [("0", "finished"), ("1", "finished")]
    assert rows[0]["val_loss"] != rows[1]["val_loss"]
    assert done.stdout.count("finished at step 2") == 2
    assert done.stdout.count("summary.csv") == 1
