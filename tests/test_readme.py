"""The README's commands run, its links lead somewhere, and its words are those of the configuration."""

import re
import shlex

import pytest
from conftest import ROOT, group_options

README = (ROOT / "README.md").read_text()
COMMANDS = [
    line.partition(" #")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
]
SCRIPTS = [shlex.split(command)[1:] for command in COMMANDS if command.startswith("python scripts/")]
# in place of minutes: the same command for two steps, with fewer pictures
SHORT = {
    "preview.py": [],
    "train.py": ["trainer.max_steps=2", "trainer.val_check_interval=2", "callbacks.samples.num_images=10"],
    "report.py": [],
    "export.py": [],
    "sample.py": ["sampler.num_steps=5"],
    "evaluate.py": ["num_samples=60"],
    "benchmark.py": ["--channels=32", "--size=16", "--batch=2", "--repeats=1", "--steps=1"],
}


def shortened(arguments):
    script, *rest = arguments
    name = script.removeprefix("scripts/")
    if "debug=overfit" in rest:  # which checks that it has learned something
        return [name, *rest]
    if any(a.startswith("images=") for a in rest) and name == "evaluate.py":  # there are few
        return [name, *rest]
    if any(a.startswith("mode=") for a in rest) and name == "evaluate.py":
        return [name, *rest, "num_images=40"]
    return [name, *(a for a in rest if not a.startswith("num_samples=") or name != "evaluate.py"), *SHORT[name]]


@pytest.mark.slow
def test_every_command_runs_in_the_order_of_the_readme(script, tmp_path):
    assert len(SCRIPTS) >= 9
    for arguments in SCRIPTS:
        script(*(shortened(arguments) if "--help" not in arguments else ["train.py", "--help"]))
    for sweep in ("sweep", "lr_ema"):
        assert (tmp_path / "runs" / sweep / "summary.csv").is_file()
        assert (tmp_path / "runs" / sweep / "summary.png").is_file()
    assert len(list((tmp_path / "runs" / "digits" / "samples").glob("samples-*/seed-*.png"))) == 100 + 64
    for made in ("trajectory/film.gif", "interpolation/grid.png"):
        assert (tmp_path / "runs" / "digits" / made).is_file()
    for mode in ("inpaint", "reconstruct", "grid"):
        assert list((tmp_path / "runs" / "digits" / "samples").glob(f"{mode}-*/grid.png")), mode
    assert len(list((tmp_path / "runs" / "digits" / "evaluation").glob("*.json"))) == 2 + 12 + 2
    [curves] = (tmp_path / "runs").glob("evaluate-*/summary.png")
    assert curves.stat().st_size > 10_000


def test_the_python_in_the_readme_runs(script, tmp_path, monkeypatch):
    script("train.py", "experiment=smoke", "name=digits", "schedule.num_steps=50", "callbacks.samples=null")
    [code] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(code, names)
    assert names["images"].shape == (16, 1, 8, 8)


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    named = set(re.findall(r"make ([a-z]+)\b", " ".join(COMMANDS) + " ".join(re.findall(r"`(make [a-z]+)`", README))))
    assert {"train", "test", "help"} <= named <= targets


def test_pictures_and_folders_exist():
    for path in re.findall(r"\]\(([^)]+)\)", README) + re.findall(
        r"^\| `((?:conf|ddpm_lightning)[^`]*)`", README, re.M
    ):
        assert (ROOT / path).exists(), path


def test_experiments_samplers_and_searches_are_all_named():
    for name in (name for group in ("experiment", "sampler", "data", "sweep") for name in group_options(group)):
        assert f"`{name}`" in README or f"={name}" in README, name


def test_the_readme_is_shorter_than_the_source():
    source = sum(len(path.read_text().splitlines()) for path in (ROOT / "ddpm_lightning").rglob("*.py"))
    assert len(README.splitlines()) < source / 4
