import json

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_lightning.runs.refusal import Failure, Refusal
from ddpm_lightning.runs.sample import sample
from ddpm_lightning.runs.train import train

SMOKE = ("experiment=smoke", "callbacks.progress=null", "+trainer.enable_progress_bar=false", "callbacks.samples=null")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A conditional and an unconditional run of a few steps."""
    from hydra import compose, initialize_config_dir

    from ddpm_lightning.runs.refusal import CONF

    folder = tmp_path_factory.mktemp("runs")
    for name, more in (("conditional", []), ("unconditional", ["model.num_classes=null"])):
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose("train", overrides=[*SMOKE, "optimizer.lr=0.02", f"output_dir={folder / name}", *more])
        train(cfg)
    return folder


def draw(configure, ckpt, out, *overrides):
    sample(configure(f"ckpt={ckpt}", f"output_dir={out}", "sampler.num_steps=4", *overrides, command="sample"))
    return {path.name: np.array(Image.open(path)) for path in out.glob("*.png")}


@pytest.mark.parametrize("sampler", ["ancestral", "ddim", "heun", "dpm_solver", "unipc"])
def test_each_sampler_writes_a_file_for_each_seed_and_a_grid(configure, runs, tmp_path, sampler):
    files = draw(configure, runs / "conditional", tmp_path / "out", f"sampler={sampler}", "num_samples=5", "seed=7")
    assert set(files) == {*(f"seed-{i:06d}.png" for i in range(7, 12)), "grid.png"}
    assert files["seed-000007.png"].shape == (8, 8)
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert settings["label"] == "all"
    assert settings["sampler"]["num_steps"] == 4


def test_the_bytes_do_not_depend_on_the_batch_size_or_on_which_images_are_drawn(configure, runs, tmp_path):
    whole = draw(configure, runs / "conditional", tmp_path / "whole", "num_samples=20")
    for size in (1, 5, 16, 17):
        again = draw(configure, runs / "conditional", tmp_path / str(size), "num_samples=20", f"batch_size={size}")
        for name, image in whole.items():
            assert np.array_equal(image, again[name]), (size, name)
    few = draw(configure, runs / "conditional", tmp_path / "few", "num_samples=3", "seed=11")
    for name in ("seed-000011.png", "seed-000013.png"):
        assert np.array_equal(few[name], whole[name])


@pytest.mark.slow
def test_two_processes_write_the_same_bytes_as_one(configure, script, runs, tmp_path):
    one = draw(configure, runs / "conditional", tmp_path / "one", "num_samples=9", "device=cpu")
    arguments = [f"ckpt={runs / 'conditional'}", "num_samples=9", "device=cpu", "sampler.num_steps=4", "devices=2"]
    script("sample.py", *arguments, f"output_dir={tmp_path / 'two'}")
    assert {path.name for path in (tmp_path / "two").glob("*.png")} == set(one)
    for name in one:
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes(), name


def test_an_images_bits_do_not_depend_on_its_neighbours():
    """Of a network with random weights, in floats, which uint8 would hide."""
    from ddpm_lightning.diffusion.denoiser import Denoiser
    from ddpm_lightning.diffusion.parameterization import Epsilon
    from ddpm_lightning.diffusion.samplers.ddim import DDIMSampler
    from ddpm_lightning.diffusion.schedules.linear import LinearSchedule
    from ddpm_lightning.generation import BLOCK, generate
    from ddpm_lightning.nn.unet import UNet

    net = UNet(8, 1, base_channels=20, channel_mults=(1, 2), attention_resolutions=(4,), num_classes=10).eval()
    for parameter in net.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.05)
    denoiser = Denoiser(net, LinearSchedule(100), Epsilon(), (1, 8, 8))

    def drawn(seeds, batch_size, block):
        labels = [seed % 10 for seed in seeds]
        return torch.cat(list(generate(denoiser, DDIMSampler(3), (1, 8, 8), seeds, labels, batch_size, block=block)))

    whole = drawn(range(40), 40, BLOCK)
    for batch_size in (1, 7, 16, 33):
        assert torch.equal(drawn(range(40), batch_size, BLOCK), whole), batch_size
    assert torch.equal(drawn([17], 1, BLOCK), whole[17:18])


def test_files_that_are_there_are_kept_and_missing_ones_made(configure, runs, tmp_path, capsys):
    out = tmp_path / "out"
    whole = draw(configure, runs / "conditional", out, "num_samples=6")
    before = {path: path.stat().st_mtime_ns for path in out.glob("seed-*.png")}
    gone = sorted(before)[2]
    gone.unlink()
    capsys.readouterr()
    again = draw(configure, runs / "conditional", out, "num_samples=8")
    assert "8 images, 5 of them kept" in capsys.readouterr().out
    for name in set(whole) - {"grid.png"}:
        assert np.array_equal(again[name], whole[name])
    for path, changed in before.items():
        assert (path.stat().st_mtime_ns == changed) == (path != gone)


@pytest.mark.parametrize("other", ["guidance=1.0", "guidance_rescale=0.5", "precision=bf16-mixed", "label=3", "ckpt"])
def test_pictures_of_other_settings_are_not_mixed(configure, runs, tmp_path, other):
    draw(configure, runs / "conditional", tmp_path / "out", "num_samples=1")
    run, more = ("unconditional", []) if other == "ckpt" else ("conditional", [other])
    with pytest.raises(Refusal, match="output_dir=.*must be another one, as it holds pictures of other settings"):
        draw(configure, runs / run, tmp_path / "out", "num_samples=1", *more)


def test_a_broken_file_among_the_kept_is_named(configure, runs, tmp_path):
    draw(configure, runs / "conditional", tmp_path / "out", "num_samples=2")
    (tmp_path / "out" / "seed-000001.png").write_bytes(b"half a picture")
    with pytest.raises(Refusal, match=r"output_dir=.*: seed-000001.png there is broken or no such image; remove it"):
        draw(configure, runs / "conditional", tmp_path / "out", "num_samples=2")


def test_a_full_disk_ends_in_one_line(configure, runs, tmp_path, monkeypatch):
    import errno

    def full(image, path):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr("ddpm_lightning.runs.modes.samples.save_png", full)
    with pytest.raises(Failure, match=r"seed-000000.png can't be written \(No space left on device\)"):
        draw(configure, runs / "conditional", tmp_path / "out", "num_samples=1")


@pytest.mark.slow
def test_a_checkpoint_that_is_replaced_while_others_load_it_is_noticed(runs, script, tmp_path, configure):
    """The record names one file; no image of another may stand beside it."""
    from omegaconf import OmegaConf

    from ddpm_lightning.runs.modes.samples import draw_files
    from ddpm_lightning.runs.sharing import _share

    cfg = configure(f"ckpt={runs / 'conditional'}", "device=cpu", "sampler.num_steps=2", command="sample")
    cfg.output_dir = str(tmp_path)
    with pytest.raises(Failure, match="the checkpoint was replaced meanwhile"):
        _share(0, draw_files, OmegaConf.to_container(cfg), [0], tmp_path, "another")
    assert not list(tmp_path.glob("*.png"))


def test_the_state_stays_in_float32_when_the_network_runs_in_bf16(configure, runs):
    from ddpm_lightning.runs.sampling import open_session, sampling_context

    session = open_session(configure(f"ckpt={runs / 'conditional'}", "precision=bf16-mixed", command="sample"))
    x_T = torch.randn(16, 1, 8, 8)
    with sampling_context(session):
        stages = [s.x_s for s in session.sampler.trajectory(session.denoiser, x_T, torch.arange(16) % 10)]
    for x in stages:
        assert x.dtype == torch.float32
        assert not torch.equal(x, x.bfloat16().float())


def test_passes_through_the_network_are_counted_with_guidance_where_it_is(configure, runs):
    from ddpm_lightning.runs.sampling import network_passes, open_session

    def passes(*options):
        session = open_session(
            configure(f"ckpt={runs / 'conditional'}", "sampler.num_steps=10", *options, command="sample")
        )
        return network_passes(session.sampler, session.denoiser)

    assert passes() == 10
    assert passes("guidance=1.0") == 20
    assert passes("guidance=1.0", "dynamic_threshold=0.9") == 20
    assert passes("sampler=heun") == 19
    assert 10 < passes("guidance=1.0", "guidance_interval=[0.3,3.0]") < 20


def test_an_npz_holds_all_images_with_their_seeds_and_labels(configure, runs, tmp_path):
    files = draw(configure, runs / "conditional", tmp_path / "out", "num_samples=12", "seed=5", "npz=true")
    with np.load(tmp_path / "out" / "images.npz") as arrays:
        assert arrays["images"].shape == (12, 8, 8, 1)
        assert arrays["images"].dtype == np.uint8
        assert arrays["seeds"].tolist() == list(range(5, 17))
        assert arrays["labels"].tolist() == [seed % 10 for seed in range(5, 17)]
        assert np.array_equal(arrays["images"][3, ..., 0], files["seed-000008.png"])


def test_random_labels_depend_on_the_seed_alone(configure, runs, tmp_path):
    drawn = []
    for i, more in enumerate((["num_samples=12"], ["num_samples=4", "seed=8"])):
        draw(configure, runs / "conditional", tmp_path / str(i), "label=random", "npz=true", *more)
        drawn.append(np.load(tmp_path / str(i) / "images.npz")["labels"].tolist())
    assert drawn[0][8:] == drawn[1]
    assert len(set(drawn[0])) > 3


def test_bf16_is_near_fp32_and_not_the_same(configure, runs, tmp_path):
    full = draw(configure, runs / "conditional", tmp_path / "a", "num_samples=4")["grid.png"].astype(int)
    half = draw(configure, runs / "conditional", tmp_path / "b", "num_samples=4", "precision=bf16-mixed")["grid.png"]
    assert np.abs(full - half).max() > 0
    assert np.abs(full - half).mean() < 3


def test_labels_and_guidance_change_the_image(configure, runs, tmp_path):
    images = []
    for i, more in enumerate((["label=3"], ["label=4"], ["label=3", "guidance=4.0"], ["label=[3,4]"])):
        images.append(draw(configure, runs / "conditional", tmp_path / str(i), "num_samples=1", *more)["grid.png"])
    assert np.array_equal(images[0], images[3])
    assert not np.array_equal(images[0], images[1])
    assert not np.array_equal(images[0], images[2])


def test_guidance_is_against_the_null_class_with_all_that_was_asked_for(configure, runs, tmp_path, monkeypatch):
    import ddpm_lightning.diffusion.guidance as module

    made = []
    original = module.GuidedDenoiser

    def watched(denoiser, *settings):
        made.append(settings)
        return original(denoiser, *settings)

    monkeypatch.setattr(module, "GuidedDenoiser", watched)
    more = ("guidance=2.5", "guidance_interval=[0.0,2.0]", "guidance_rescale=0.7", "dynamic_threshold=0.5")
    images = [draw(configure, runs / "conditional", tmp_path / "out", "num_samples=1", *more)["grid.png"]]
    assert made == [(2.5, 10, [0.0, 2.0], 0.7)]
    for i in range(1, 4):  # each of them matters
        less = [option for k, option in enumerate(more) if k != i]
        images.append(draw(configure, runs / "conditional", tmp_path / str(i), "num_samples=1", *less)["grid.png"])
    assert all(not np.array_equal(images[0], other) for other in images[1:])


def test_averaged_and_raw_weights_give_other_images(configure, runs, tmp_path):
    ema, raw = (
        draw(configure, runs / "conditional", tmp_path / w, "num_samples=1", f"weights={w}") for w in ("ema", "raw")
    )
    assert not np.array_equal(ema["grid.png"], raw["grid.png"])


def test_the_default_folder_is_named_by_the_settings(configure, runs):
    for more in ("seed=0", "seed=1", "dynamic_threshold=0.5"):  # images of other seeds belong beside the first
        quick = ("num_samples=1", "sampler.num_steps=2", more)
        sample(configure(f"ckpt={runs / 'unconditional'}", *quick, command="sample"))
    folders = list((runs / "unconditional" / "samples").iterdir())
    assert len(folders) == 2
    assert all(folder.name.startswith("samples-ddim-2-") for folder in folders)


@pytest.mark.parametrize(
    ("run", "overrides", "message"),
    [
        ("conditional", ["label=10"], r"label=10: must be all, random, an integer in \[0, 9\], or a list of such"),
        ("conditional", ["label=[1,-1]"], r"label=\[1, -1\]: must be all, random"),
        ("conditional", ["label=cat"], "label=cat: must be all, random"),
        ("conditional", ["sampler.num_steps=101"], r"sampler.num_steps must lie in \[1, 100\].*got 101"),
        ("conditional", ["sampler.num_steps=0"], "sampler.num_steps must be an integer of at least 1, got 0"),
        ("conditional", ["mode=likelihood"], "mode=likelihood: must be one of samples, trajectory, interpolate"),
        ("conditional", ["num_samples=0"], r"num_samples=0: must be an integer in \[1, "),
        ("conditional", ["seed=-1"], r"seed=-1: must be an integer in \[0, "),
        ("conditional", ["guidance=-1.0"], "guidance must be at least 0, got -1.0"),
        ("conditional", ["weights=best"], "weights must be one of raw, ema, 0.9999, those of .*, got best"),
        ("conditional", ["device=abacus"], "device=abacus"),
        ("conditional", [f"output_dir={__file__}/x"], "output_dir=.*must be a folder that can be written"),
        ("unconditional", ["label=3"], "label=3: must be all, as the checkpoint was trained without labels"),
        ("unconditional", ["guidance=1.0"], "guidance must be 0 for a network without labels, got 1.0"),
        (
            "conditional",
            ["guidance=1.0", "guidance_interval=[3,1]"],
            "guidance_interval must be two numbers, 0 <= low < h",
        ),
        ("conditional", ["guidance_interval=5"], "guidance_interval must be two numbers, 0 <= low < high, got 5"),
        ("conditional", ["guidance_interval=[a,b]"], "guidance_interval must be two numbers"),
        ("conditional", ["guidance_rescale=7.0"], r"guidance_rescale must lie in \[0, 1\], got 7.0"),
        ("conditional", ["dynamic_threshold=abc"], r"dynamic_threshold must lie in \(0, 1\], got abc"),
        ("conditional", ["dynamic_threshold=true"], r"dynamic_threshold must lie in \(0, 1\], got True"),
        ("conditional", ["device=meta"], "device=meta: must be auto, or one of cpu, cuda, mps"),
        ("conditional", ["devices=100"], r"devices=100: must lie in \[1, "),
        ("conditional", ["guidance=1.0", "guidance_interval=[1]"], "guidance_interval must be two numbers"),
        ("conditional", ["guidance=1.0", "guidance_rescale=2.0"], r"guidance_rescale must lie in \[0, 1\], got 2.0"),
        ("conditional", ["dynamic_threshold=1.5"], r"dynamic_threshold must lie in \(0, 1\], got 1.5"),
        ("conditional", ["precision=16-mixed"], "precision=16-mixed: must be one of 32-true, bf16-mixed"),
        ("conditional", ["devices=0"], r"devices=0: must be an integer in \[1, "),
        ("missing", [], "ckpt must be a checkpoint file, or a run folder"),
    ],
)
def test_impossible_values_are_refused(configure, runs, tmp_path, run, overrides, message):
    defaults = [f"output_dir={tmp_path / 'out'}", "sampler.num_steps=2"]
    defaults = [d for d in defaults if d.partition("=")[0] not in {o.partition("=")[0] for o in overrides}]
    with pytest.raises(Refusal, match=message) as refusal:
        sample(configure(f"ckpt={runs / run}", *defaults, *overrides, command="sample"))
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_that_lacks_weights_is_refused(configure, runs, tmp_path):
    checkpoint = torch.load(runs / "conditional" / "checkpoints" / "last.ckpt", weights_only=True)
    checkpoint["ema"]["averages"]["0.9999"].popitem()
    torch.save(checkpoint, tmp_path / "short.ckpt")
    with pytest.raises(Refusal, match="short.ckpt"):
        sample(configure(f"ckpt={tmp_path / 'short.ckpt'}", command="sample"))
