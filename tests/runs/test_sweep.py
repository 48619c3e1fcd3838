"""Sweeps, and what stands at their end."""

import json
import math

import pytest
from matplotlib.figure import Figure
from omegaconf import OmegaConf

from ddpm_lightning.runs.sweep import SweepSummary


@pytest.fixture
def summary(tmp_path, monkeypatch, capsys):
    """What stands at the end of a sweep with these jobs: (overrides, status, figures)."""

    def summarise(*jobs, **sweeper):
        config = OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path / "sweep")}, "sweeper": sweeper}})
        drawn = []

        def save(figure, *args, savefig=Figure.savefig, **kwargs):
            drawn.append(figure)
            savefig(figure, *args, **kwargs)

        monkeypatch.setattr(Figure, "savefig", save)
        end = SweepSummary()
        end.on_multirun_start(config)
        for i, (overrides, status, figures) in enumerate(jobs):
            folder = tmp_path / "sweep" / str(i)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "job.json").write_text(json.dumps({"overrides": overrides.split(), "status": status}))
            (folder / "result.json").write_text(json.dumps({"metrics": figures}))
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
