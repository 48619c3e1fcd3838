"""mode=likelihood: the same figure however it is cut into batches, and from its own line."""

import csv
import json
import re

import pytest
import torch
from hydra import compose, initialize_config_dir

from ddpm_lightning.runs.evaluate import evaluate
from ddpm_lightning.runs.refusal import CONF, Refusal
from ddpm_lightning.runs.train import train

SMOKE = ("experiment=smoke", "callbacks.progress=null", "+trainer.enable_progress_bar=false", "callbacks.samples=null")
LEARNED = ("objective=hybrid", "model.learned_variance=true")
ZERO = ("schedule.zero_terminal_snr=true", "parameterization=v", "objective.denoising.space=output")


def trained(tmp_path_factory, *overrides):
    folder = tmp_path_factory.mktemp("runs") / "run"
    with initialize_config_dir(str(CONF), version_base="1.3"):
        train(compose("train", overrides=[*SMOKE, "trainer.max_steps=3", *overrides, f"output_dir={folder}"]))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Of a schedule that ends while something of x_0 is left, so that L_T counts."""
    return trained(tmp_path_factory, "schedule.num_steps=30", "schedule.beta_end=0.004")


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    return trained(tmp_path_factory, "schedule.num_steps=30", *LEARNED)


@pytest.fixture(scope="module")
def zero(tmp_path_factory):
    return trained(tmp_path_factory, *ZERO)


@pytest.fixture
def measure(configure):
    """The figure, and what was left beside it."""

    def measured(run, *overrides, mode="likelihood"):
        quick = (f"ckpt={run}", f"mode={mode}", "device=cpu", "num_images=20", "sampler.num_steps=5")
        first = evaluate(configure(*quick, *overrides, command="evaluate"))
        newest = max((run / "evaluation").glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
        return first, json.loads(newest.read_text()), newest

    return measured


@pytest.mark.parametrize("method", ["bound", "ode"])
def test_the_figure_does_not_depend_on_the_batch_size(run, measure, method):
    quick = (f"method={method}", "ode_steps=5")
    first, *_ = measure(run, *quick)
    assert measure(run, *quick, "batch_size=7")[0] == first
    assert measure(run, *quick, "seed=1")[0] != first


def test_an_image_has_its_figure_whichever_others_are_looked_at(run, measure, monkeypatch):
    """Its noise is that of its place in the split."""
    import ddpm_lightning.runs.figures.likelihood as module

    found = []
    monkeypatch.setattr(module, "leave_terms", lambda *_: None)
    original = module.bound

    def spy(denoiser, batch, *rest):
        bits = original(denoiser, batch, *rest)
        found.append((batch.x_0[: batch.wanted], bits))
        return bits

    monkeypatch.setattr(module, "bound", spy)
    measure(run, "num_images=450", "num_times=2", "batch_size=450")
    measure(run, "num_images=45", "num_times=2")  # every tenth
    (images, bits), (few, their) = found
    assert torch.equal(images[::10], few)
    torch.testing.assert_close(bits[::10], their)


def test_the_terms_add_up_to_the_figure(run, measure, capsys):
    first, record, path = measure(run)
    figures = record["metrics"]
    assert figures["bits_per_dim"] == first
    assert figures["decoder"] + figures["divergences"] + figures["prior"] == pytest.approx(first)
    with open(path.with_suffix(".csv")) as file:
        rows = list(csv.DictReader(file))
    assert [int(row["t"]) for row in rows] == list(range(1, 31))
    assert {row["count"] for row in rows} == {"20"}
    assert sum(float(row["bits_per_dim"]) for row in rows) + figures["prior"] == pytest.approx(first)
    assert figures["prior"] > 0.001 * first
    assert float(rows[0]["bits_per_dim"]) == pytest.approx(figures["decoder"])
    assert path.with_suffix(".png").stat().st_size > 1000
    assert f"bits/dim {first:.4f} +- {figures['standard_error']:.4f}" in capsys.readouterr().out


def test_some_times_give_the_figure_of_all_on_average(run, measure):
    exact, *_ = measure(run, "num_images=450")
    estimate, record, path = measure(run, "num_images=450", "num_times=4")
    with open(path.with_suffix(".csv")) as file:
        assert sum(int(row["count"]) for row in csv.DictReader(file)) == 4 * 450
    assert estimate != exact
    assert abs(estimate - exact) < 4 * record["metrics"]["standard_error"]


@pytest.mark.parametrize("method", ["bound", "ode"])
def test_what_the_line_says_gives_the_figure_again(run, measure, capsys, method):
    more = ("num_times=3",) if method == "bound" else ("ode_steps=4", "num_probes=2", "ode_spacing=log_snr")
    first, record, path = measure(
        run, f"method={method}", *more, "labels=false", "seed=5", "clip_x0=false", "split=train"
    )
    line = record["line"]
    assert line in capsys.readouterr().out.splitlines()
    [keys] = [part for part in line.split(" | ") if part.startswith("mode=")]
    assert f"bits/dim {first:.4f}" in line
    path.unlink()
    assert measure(run, *keys.split())[:2] == (first, record)
    again = re.sub("seed=5", "seed=6", keys)
    assert measure(run, *again.split())[0] != first


def test_a_learned_variance_is_used_where_there_is_one(learned, run, measure):
    figures = {}
    for variance in ("null", "small", "large", "learned"):
        figures[variance], record, _ = measure(learned, f"variance={variance}", "num_times=10")
        assert f"variance={variance.replace('null', 'learned')}" in record["line"]
    assert figures["null"] == figures["learned"]
    assert len(set(figures.values())) == 3
    assert measure(run, "num_times=10")[1]["protocol"]["variance"] == "large"


def test_labels_count_and_can_be_left_out(run, measure):
    given, record, _ = measure(run, "num_times=10")
    left_out, other, _ = measure(run, "num_times=10", "labels=false")
    assert given != left_out
    assert "given labels" in record["line"]
    assert "uncond" in other["line"]


def test_estimates_are_clipped_on_request_and_probes_are_signs(run, measure, monkeypatch):
    import ddpm_lightning.runs.figures.likelihood as module

    seen = []

    def watching(denoiser, x_0, noise, times, variance, label, probes, on_move):
        seen.append((denoiser(3 * noise, 1, label).abs().max(), probes(x_0)))
        return noise.flatten(1).mean(1)

    monkeypatch.setattr(module, "flow_bound", watching)
    for clip in ("true", "false"):
        measure(run, "method=ode", "ode_steps=5", "num_probes=3", f"clip_x0={clip}")
    (clipped, probes), (unclipped, _) = seen
    assert clipped <= 1 < unclipped
    assert len(probes) == 3
    assert all(set(probe.unique().tolist()) == {-1.0, 1.0} for probe in probes)
    assert not torch.equal(probes[0], probes[1])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method=exact"], "method=exact: must be one of bound, ode"),
        (["variance=medium"], "variance=medium: must be null, or one of small, large, learned"),
        (["variance=learned"], "variance=learned: must be small or large for a network that learns none"),
        (["num_times=0"], r"num_times=0: must be null for all, or an integer in \[1, 30\]"),
        (["num_times=31"], r"num_times=31: must be null for all, or an integer in \[1, 30\]"),
        (["num_times=all"], "num_times=all: must be null for all, or an integer"),
        (
            ["num_images=451"],
            r"num_images=451: must be null for all, or an integer in \[2, 450\], the images of split=val",
        ),
        (["num_images=1"], r"num_images=1: must be null for all, or an integer in \[2, 450\]"),
        (["split=test"], "split=test: must be one of val, train"),
        (["labels=false", "guidance=1.0"], "labels=false: must be true for guidance"),
        (["method=ode", "ode_steps=30"], r"ode_steps=30: must be an integer in \[1, 30\)"),
        (["method=ode", "ode_steps=5", "num_probes=0"], r"num_probes=0: must be an integer in \[1, "),
        (["method=ode", "ode_steps=5", "ode_spacing=even"], "ode_spacing=even: must be one of time, log_snr, karras"),
    ],
)
def test_impossible_values_are_refused(run, measure, overrides, message):
    with pytest.raises(Refusal, match=message) as refusal:
        measure(run, *overrides)
    assert "\n" not in str(refusal.value)


def test_the_flow_from_pure_noise_is_refused_and_its_bound_is_not(zero, measure):
    with pytest.raises(Refusal, match="method=ode: must be bound for schedule.zero_terminal_snr=true"):
        measure(zero, "method=ode")
    first, record, _ = measure(zero)
    assert 0 < first < 100
    assert record["metrics"]["prior"] == 0
