"""Sweeps: grids, searches, several at a time, and what stands at their end."""

import csv
import json
import math
import os
import time

import pytest
from conftest import group_options
from hydra import compose, initialize_config_dir
from matplotlib.figure import Figure
from omegaconf import OmegaConf

from ddpm_lightning.runs.refusal import CONF
from ddpm_lightning.runs.sweep import SweepSummary

QUICK = (
    *("experiment=smoke", "callbacks.samples=null", "trainer.max_steps=2", "trainer.val_check_interval=2"),
    *("callbacks.progress=null", "+trainer.enable_progress_bar=false"),
)


def table(path):
    with open(path / "summary.csv") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def summary(tmp_path, monkeypatch, capsys):
    """What stands at the end of a sweep with these jobs: (overrides, status, figures), or with costs as well."""

    def summarise(*jobs, **sweeper):
        config = OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path / "sweep")}, "sweeper": sweeper}})
        drawn = []

        def save(figure, *args, savefig=Figure.savefig, **kwargs):
            drawn.append(figure)
            savefig(figure, *args, **kwargs)

        monkeypatch.setattr(Figure, "savefig", save)
        end = SweepSummary()
        end.on_multirun_start(config)
        for i, (overrides, status, figures, *costs) in enumerate(jobs):
            folder = tmp_path / "sweep" / str(i)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "job.json").write_text(json.dumps({"overrides": overrides.split(), "status": status}))
            (folder / "result.json").write_text(json.dumps({"metrics": figures, **dict(*costs)}))
        code = 0
        try:
            end.on_multirun_end(config)
        except SystemExit as stop:
            code = stop.code
        return code, capsys.readouterr().out, drawn[0] if drawn else None

    return summarise


def points(panel):
    """The dots of a panel, without the star."""
    return [tuple(map(float, point)) for point in panel.collections[0].get_offsets()]


def test_the_plot_has_a_panel_for_each_override_that_varied(summary, tmp_path):
    code, said, figure = summary(
        ("name=a lr=0.001 schedule=linear", "finished", {"val_loss": 0.3, "other": 9}),
        ("name=a lr=0.1 schedule=cosine", "finished", {"val_loss": 0.1}),
        ("name=a lr=0.01 schedule=cosine", "finished", {"val_loss": 0.2}),
    )
    lr, schedule = figure.axes
    assert code == 0
    assert (lr.get_xlabel(), lr.get_xscale(), lr.get_ylabel()) == ("lr", "log", "val_loss")
    assert points(lr) == [(0.001, 0.3), (0.1, 0.1), (0.01, 0.2)]
    assert (schedule.get_xlabel(), schedule.get_xscale()) == ("schedule", "linear")
    assert points(schedule) == [(0, 0.3), (1, 0.1), (1, 0.2)]
    assert [label.get_text() for label in schedule.get_xticklabels()] == ["linear", "cosine"]
    assert [tuple(panel.collections[1].get_offsets()[0]) for panel in (lr, schedule)] == [(0.1, 0.1), (1, 0.1)]
    assert figure.get_suptitle() == "val_loss of 3 of 3 jobs; star: the best, job 1"
    assert "best: job 1, val_loss 0.1: lr=0.1 schedule=cosine\n" in said
    assert (tmp_path / "sweep" / "summary.png").stat().st_size > 5000


def test_jobs_without_a_point_are_counted_in_the_title_and_decide_the_exit_code(summary):
    jobs = [("x=1", "finished", {"val_loss": 0.3}), ("x=2", "finished", {"val_loss": math.nan})]
    assert summary(*jobs)[0] == 0
    assert summary(*jobs, ("x=3", "refused", {}))[0] == 2
    code, _, figure = summary(*jobs, ("x=3", "refused", {}), ("x=4", "failed", {}), ("x=5", "refused", {}))
    assert code == 1
    assert points(figure.axes[0]) == [(1, 0.3)]
    title = figure.get_suptitle().replace("\n", " ")
    assert title.startswith("val_loss of 1 of 5 jobs (1 without a finite figure, 2 refused, 1 failed);")


def test_an_error_in_the_plot_leaves_the_exit_code(summary, monkeypatch):
    monkeypatch.setattr(Figure, "subplots", lambda *args, **kwargs: 1 / 0)
    assert summary(("x=1", "finished", {"val_loss": 0.3}), ("x=2", "failed", {}))[0] == 1
    with pytest.raises(ZeroDivisionError):
        summary(("x=1", "finished", {"val_loss": 0.3}), ("x=2", "finished", {"val_loss": 0.3}))


@pytest.mark.parametrize(
    ("figure", "sweeper", "best"),
    [
        ("val_loss", {}, 0),
        ("fid", {}, 0),
        ("precision", {}, 1),
        ("precision", {"direction": "minimize"}, 0),
        ("val_loss", {"direction": "maximize"}, 1),
        ("memorisation", {}, None),
    ],
)
def test_the_best_job_is_what_was_searched_or_what_the_figure_means(summary, figure, sweeper, best):
    _, said, drawn = summary(("x=a", "finished", {figure: 0.25}), ("x=b", "finished", {figure: 0.75}), **sweeper)
    lines = [line for line in said.splitlines() if line.startswith("best: ")]
    assert lines == [f"best: job {i}, {figure} {0.25 + 0.5 * i}: x={'ab'[i]}" for i in (0, 1) if i == best]
    assert len(drawn.axes[0].collections) == (1 if best is None else 2)


def test_what_can_not_be_drawn_is_said_and_an_earlier_picture_removed(summary, tmp_path):
    same = ("x=1", "finished", {"val_loss": 0.5})
    summary(same, ("x=2", "finished", {"val_loss": 0.3}))
    picture = tmp_path / "sweep" / "summary.png"
    assert picture.exists()
    code, said, _ = summary(same, same)
    assert (code, picture.exists()) == (0, False)
    assert said.endswith("best: job 0, val_loss 0.5\nno plot: no override varied\n")
    assert summary(("x=1", "finished", {}), ("x=2", "finished", {}))[1].endswith("no plot: no job has a figure\n")


def evaluated(sampler, steps, guidance, fid, calls=None):
    overrides = f"ckpt=runs/x sampler={sampler} sampler.num_steps={steps} guidance={guidance}"
    costs = {"network_calls": steps * (1 + guidance) if calls is None else calls, "seconds": 1.5 * steps}
    return overrides, "finished", {"fid": fid, "precision": 0.5}, costs


def drawn_lines(figure):
    [panel] = figure.axes
    return panel, {line.get_label(): [*map(list, line.get_data())] for line in panel.lines}


def test_evaluations_of_more_and_fewer_steps_are_curves_over_network_calls(summary, tmp_path):
    jobs = [  # not in the order of their calls
        evaluated("ddim", 20, 0, 0.5),
        evaluated("ddim", 5, 0, 4.0),
        evaluated("ddim", 20, 1, 0.75),
        evaluated("ddim", 5, 1, 8.0),
        evaluated("heun", 20, 0, 0.25, calls=39),
        evaluated("heun", 5, 0, 2.0, calls=9),
        ("ckpt=runs/x sampler=heun sampler.num_steps=2000 guidance=0", "refused", {}),
    ]
    code, said, figure = summary(*jobs)
    panel, lines = drawn_lines(figure)
    assert lines == {
        "sampler=ddim guidance=0": [[5, 20], [4.0, 0.5]],
        "sampler=ddim guidance=1": [[10, 40], [8.0, 0.75]],
        "sampler=heun guidance=0": [[9, 39], [2.0, 0.25]],
    }
    assert (panel.get_xlabel(), panel.get_ylabel()) == ("network calls for an image", "fid")
    assert [list(point) for point in panel.collections[0].get_offsets()] == [[39, 0.25]]  # the star
    assert len({(line.get_color(), line.get_marker()) for line in panel.lines}) == 3
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(lines)
    assert figure.get_suptitle().startswith("fid of 6 of 7 jobs (1 refused); star: the best, job 4")
    assert code == 2
    rows = table(tmp_path / "sweep")
    assert [(row["network_calls"], row["seconds"]) for row in rows[3:]] == [
        *[("10", "7.5"), ("39", "30.0"), ("9", "7.5"), ("", "")]
    ]
    assert "best: job 4, fid 0.25: sampler=heun sampler.num_steps=20 guidance=0\n" in said


@pytest.mark.parametrize(
    ("steps", "scale", "ticks"),
    [((5, 6, 50, 500), "log", ["5", "50", "500"]), ((5, 20, 40), "linear", ["5", "20", "40"])],  # 6 is too near to 5
)
def test_network_calls_that_span_a_decade_are_on_a_log_axis(summary, steps, scale, ticks):
    _, _, figure = summary(*(evaluated("ddim", n, 0, 1 + 1 / n) for n in steps))
    panel, lines = drawn_lines(figure)
    assert (panel.get_xscale(), panel.get_yscale()) == (scale, "linear")
    assert [label.get_text() for label in panel.get_xticklabels()] == ticks
    assert len(lines) == 1
    assert not figure.legends  # one line, that needs no name


def test_evaluations_of_one_length_are_drawn_against_what_varied(summary):
    """Even where one needs more calls for it: no line would have two points."""
    figure = summary(evaluated("ddim", 10, 0, 0.5), evaluated("heun", 10, 0, 0.25, calls=19))[2]
    assert [panel.get_xlabel() for panel in figure.axes] == ["sampler"]
    assert points(figure.axes[0]) == [(0, 0.5), (1, 0.25)]


def test_many_lines_stay_apart_and_are_all_named(summary, tmp_path):
    samplers = ("ancestral", "ddim", "dpm_solver", "heun", "unipc")
    runs = [(s, g) for s in samplers for g in range(5)]
    figure = summary(*(evaluated(s, n, g, 1 / n + g) for s, g in runs for n in (5, 10, 20)))[2]
    panel, lines = drawn_lines(figure)
    assert len(lines) == len({(line.get_color(), line.get_marker()) for line in panel.lines}) == 25
    figure.canvas.draw()
    legend, box = figure.legends[0].get_window_extent(), panel.get_window_extent()
    assert legend.x0 > box.x1 - 1  # beside the panel
    assert figure.bbox.y0 <= legend.y0 < legend.y1 <= figure.bbox.y1
    assert (box.width, box.height) > (400, 300)  # pixels


@pytest.mark.parametrize("sweep", group_options("sweep"))
def test_every_search_varies_keys_that_there_are_and_says_its_command(sweep):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", overrides=[f"sweep={sweep}"], return_hydra_config=True)
    for key in cfg.hydra.sweeper.params:
        assert OmegaConf.select(cfg, key) is not None, key
    assert cfg.name == sweep
    lines = (CONF / "sweep" / f"{sweep}.yaml").read_text().splitlines()
    assert lines[1].startswith(f"# python scripts/train.py sweep={sweep}")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["sweep=lr_ema"], "sweep=lr_ema: needs Hydra's optuna plugin: pip install -e '.[sweep]'"),
        (["-m", "hydra/launcher=joblib"], "hydra/launcher=joblib: needs Hydra's joblib plugin: pip install -e '.[sw"),
        (["hydra/sweeper=optuna"], "hydra/sweeper=optuna: needs Hydra's optuna plugin: pip install -e '.[sweep]'"),
    ],
)
def test_without_the_extra_one_line_says_how_to_get_it(script, tmp_path, arguments, said):
    (tmp_path / "site" / "hydra_plugins").mkdir(parents=True)
    (tmp_path / "site" / "hydra_plugins" / "__init__.py").touch()  # hides the plugins that are installed
    start = time.monotonic()
    done = script("train.py", *arguments, check=2, PYTHONPATH=path_with(tmp_path / "site"))
    assert time.monotonic() - start < 3
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def path_with(folder):
    return os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])


@pytest.mark.slow
def test_a_search_finds_its_best_job_and_goes_on_where_it_stopped(script, tmp_path):
    search = ("sweep=lr_ema", *QUICK, "name=found")
    script("train.py", *search, "hydra.sweeper.n_trials=2")
    first = table(tmp_path / "runs" / "found")
    done = script("train.py", "-m", *search, "hydra.sweeper.n_trials=3")
    rows = table(tmp_path / "runs" / "found")
    assert rows[:2] == first
    assert done.stdout.count("is finished: 2 steps") == 2
    assert len({row["optimizer.lr"] for row in rows}) == len({row["callbacks.ema.decay"] for row in rows}) == 3
    for row in rows:
        config = OmegaConf.load(tmp_path / "runs" / "found" / row["job"] / "config.yaml")
        assert config.optimizer.lr == float(row["optimizer.lr"])
        assert config.callbacks.ema.decay == float(row["callbacks.ema.decay"])
    best = min(rows, key=lambda row: float(row["val_loss"]))
    optuna = OmegaConf.load(tmp_path / "runs" / "found" / "optimization_results.yaml")
    assert optuna.best_value == float(best["val_loss"])
    assert optuna.best_params["optimizer.lr"] == float(best["optimizer.lr"])
    assert f"best: job {best['job']}, val_loss {optuna.best_value:.5g}: optimizer.lr=" in done.stdout
    assert (tmp_path / "runs" / "found" / "summary.png").is_file()


@pytest.mark.slow
def test_refused_failed_and_diverged_jobs_stop_no_search(script, tmp_path):
    space = (
        *("hydra/sweeper=optuna", "hydra/sweeper/sampler=grid", "optimizer.lr=choice(0.001,-1,1e30)"),
        "callbacks.ema._target_=choice(ddpm_lightning.callbacks.ema.EMA,builtins.dict)",
    )
    done = script("train.py", "-m", *QUICK, *space, check=1)
    rows = table(tmp_path / "runs" / "smoke")
    found = {(row["callbacks.ema._target_"][-3:], float(row["optimizer.lr"])): row for row in rows}
    assert {key: (row["status"], row["val_loss"] not in ("", "nan")) for key, row in found.items()} == {
        ("EMA", 0.001): ("finished", True),
        ("EMA", -1): ("refused", False),
        ("EMA", 1e30): ("failed", False),
        ("ict", 0.001): ("failed", False),
        ("ict", -1): ("refused", False),
        ("ict", 1e30): ("failed", False),
    }
    assert f"best: job {found['EMA', 0.001]['job']}, " in done.stdout


@pytest.mark.slow
def test_a_search_of_refused_jobs_alone_ends_in_a_table(script, tmp_path):
    done = script("train.py", "sweep=lr_ema", *QUICK, "schedule.num_steps=-5", "hydra.sweeper.n_trials=2", check=2)
    assert [row["status"] for row in table(tmp_path / "runs" / "lr_ema")] == ["refused", "refused"]
    assert done.stdout.endswith("no plot: no job has a figure\n")
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [[], ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]])
def test_a_searchs_two_process_jobs_have_one_configuration_and_fail_alone(script, tmp_path, launcher):
    """Every rank leaves a note of what it trains with; in both ranks of job 0 an error is planted."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(
        """
import json, os, sys
from importlib.abc import MetaPathFinder
class Plant(MetaPathFinder):  # once training is imported, and not in each process that joblib starts
    def find_spec(self, name, path, target=None):
        if name == "ddpm_lightning.runs.train":
            sys.meta_path.remove(self)
            from ddpm_lightning.callbacks.ema import EMA
            from ddpm_lightning.module import DiffusionModule
            original = DiffusionModule.training_step
            def training_step(self, batch, batch_idx):
                [decay] = [list(c.decays.values()) for c in self.trainer.callbacks if isinstance(c, EMA)]
                job = self.trainer.default_root_dir.rpartition("/")[2]
                with open(f"notes-{job}-{self.global_rank}.json", "w") as file:
                    json.dump([self.optimizers().defaults["lr"], *decay], file)
                if job == "0":
                    raise RuntimeError("planted")
                return original(self, batch, batch_idx)
            DiffusionModule.training_step = training_step
sys.meta_path.insert(0, Plant())
"""
    )
    both = ("sweep=lr_ema", *QUICK, "trainer=ddp_cpu", "hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=2")
    both += ("hydra.sweeper.sampler.seed=null",)  # or ranks that each searched for themselves would agree
    script("train.py", *both, *launcher, check=1, timeout=400, PYTHONPATH=path_with(tmp_path / "site"))
    rows = table(tmp_path / "runs" / "lr_ema")
    assert [row["status"] for row in rows] == ["failed", "finished", "finished"]
    for row in rows[1:]:
        asked = [float(row["optimizer.lr"]), float(row["callbacks.ema.decay"])]
        ranks = [json.loads((tmp_path / f"notes-{row['job']}-{rank}.json").read_text()) for rank in (0, 1)]
        assert ranks == [asked, asked]
    assert len({row["optimizer.lr"] for row in rows}) == 3
