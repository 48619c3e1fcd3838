"""The modes of sampling: what their pictures must show, whatever the network has learned."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_lightning.checkpoint import load_denoiser
from ddpm_lightning.diffusion.samplers.ddim import DDIMSampler
from ddpm_lightning.generation import film, generate
from ddpm_lightning.images import CAPTION_HEIGHT, to_uint8
from ddpm_lightning.runs.refusal import Refusal
from ddpm_lightning.runs.sample import sample
from ddpm_lightning.runs.train import train

CELL = 50  # pixels from one image of a grid to the next: 8 enlarged to 48, and 2 between


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A conditional network that has learned a little."""
    from hydra import compose, initialize_config_dir

    from ddpm_lightning.runs.refusal import CONF

    folder = tmp_path_factory.mktemp("runs") / "run"
    quick = ("callbacks.progress=null", "+trainer.enable_progress_bar=false", "callbacks.samples=null")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        train(compose("train", overrides=["experiment=smoke", *quick, "optimizer.lr=0.01", f"output_dir={folder}"]))
    return folder


@pytest.fixture
def make(configure, run, tmp_path):
    """Run a mode, and give the folder of its pictures."""

    def made(mode, *overrides, out="out"):
        quick = (f"ckpt={run}", f"mode={mode}", f"output_dir={tmp_path / out}", "device=cpu")
        sample(configure(*quick, *overrides, command="sample"))
        return tmp_path / out

    return made


def test_without_a_label_all_frames_have_that_of_the_first_seed(make, capsys):
    quick = ("sampler.num_steps=5", "frames=16")
    out = make("interpolate", *quick, "seeds=[13,4]")
    assert "16 frames of label 3 in" in capsys.readouterr().out
    given = make("interpolate", *quick, "seeds=[13,4]", "label=3", out="given")
    for i in range(16):
        assert (out / f"frame-{i:04d}.png").read_bytes() == (given / f"frame-{i:04d}.png").read_bytes()


def picture(path):
    return np.array(Image.open(path))


def save(path, array):
    Image.fromarray(array.astype(np.uint8)).save(path)
    return path


@pytest.fixture
def digits(tmp_path):
    """Two different pictures of the network's size."""
    rng = np.random.default_rng(0)
    return [save(tmp_path / f"{name}.png", rng.integers(0, 256, (8, 8))) for name in "ab"]


def drawn(run, seeds, labels, sampler):
    """Images as sampled by another way."""
    denoiser = load_denoiser(run).denoiser
    return to_uint8(torch.cat(list(generate(denoiser, sampler, (1, 8, 8), seeds, labels, block=16))))


def test_a_trajectory_begins_in_noise_and_ends_in_the_sample(make, run):
    out = make("trajectory", "sampler.num_steps=7", "num_samples=2", "stages=5", "seed=3", "label=4")
    strip = picture(out / "strip.png")
    assert strip.shape[1] == 5 * CELL + 2
    expected = drawn(run, [3, 4], [4, 4], DDIMSampler(7))
    top = 2 + CAPTION_HEIGHT + 2
    for i in range(2):  # a row of states, and one of estimates
        end = strip[top + 2 * i * CELL : top + 2 * i * CELL + 48, 2 + 4 * CELL : 50 + 4 * CELL, 0]
        assert np.abs(end[::6, ::6].astype(int) - expected[i, 0].numpy()).max() <= 1
        # the last move goes to the estimate itself
        estimate = strip[top + (2 * i + 1) * CELL :][:48, 2 + 4 * CELL : 50 + 4 * CELL, 0]
        assert np.array_equal(estimate, end)
        start = strip[top + 2 * i * CELL : top + 2 * i * CELL + 48, 2:50, 0][::6, ::6]
        noise = torch.randn((1, 8, 8), generator=torch.Generator().manual_seed(3 + i))
        assert np.array_equal(start, to_uint8(noise)[0].numpy())
    with Image.open(out / "film.gif") as gif:
        assert gif.n_frames == 8
        gif.seek(7)
        last = np.array(gif.convert("L"))
    assert np.abs(last[2:50:6, 2:50:6].astype(int) - expected[0, 0].numpy()).max() <= 2


def test_a_films_last_state_is_the_image_and_its_times_fall(run):
    denoiser = load_denoiser(run).denoiser
    sampler = DDIMSampler(6)
    times, states, estimates = zip(*film(denoiser, sampler, (1, 8, 8), [1, 2], [3, 4]), strict=True)
    assert list(times) == sorted(times, reverse=True)
    assert (times[0], times[-1], len(times)) == (100, 0, 7)
    torch.testing.assert_close(states[-1], next(generate(denoiser, sampler, (1, 8, 8), [1, 2], [3, 4])))
    assert all(x.shape == x_0.shape == (2, 1, 8, 8) for x, x_0 in zip(states, estimates, strict=True))


@pytest.mark.parametrize("sampler", ["ddim", "ancestral"])
def test_an_interpolation_begins_and_ends_with_the_samples_of_its_seeds(make, sampler):
    """Also where noise is drawn on the way."""
    quick = (f"sampler={sampler}", "sampler.num_steps=5", "label=7")
    out = make("interpolate", *quick, "seeds=[11,4]", "frames=16")
    for frame, seed in (("0000", 11), ("0015", 4)):
        ends = make("samples", *quick, "num_samples=1", f"seed={seed}", out=f"seed{seed}")
        assert (out / f"frame-{frame}.png").read_bytes() == (ends / f"seed-{seed:06d}.png").read_bytes()
    middle = [picture(out / f"frame-{i:04d}.png").astype(int) for i in range(16)]
    steps = [np.abs(a - b).mean() for a, b in zip(middle, middle[1:], strict=False)]
    assert max(steps) < 0.5 * np.abs(middle[0] - middle[-1]).mean()  # no jumps
    with Image.open(out / "film.gif") as gif:
        assert gif.n_frames <= 30
    assert (out / "grid.png").is_file()


@pytest.mark.parametrize("t", [None, 40])
def test_between_two_pictures_the_ends_are_the_pictures(make, digits, t):
    images = f"images=[{digits[0]},{digits[1]}]"
    more = ("frames=5", "sampler.num_steps=8", "label=3", f"t={'null' if t is None else t}")
    out = make("interpolate", images, *more)
    for frame, path in (("0000", digits[0]), ("0004", digits[1])):
        assert np.array_equal(picture(out / f"frame-{frame}.png"), picture(path))
    assert not np.array_equal(picture(out / "frame-0002.png"), picture(digits[0]))


@pytest.mark.parametrize("spacing", ["time", "log_snr"])
def test_encoded_pictures_come_back_at_both_ends_before_they_are_put_there(configure, run, digits, spacing):
    from tqdm import tqdm

    from ddpm_lightning.runs.modes.interpolate import _frames
    from ddpm_lightning.runs.sampling import open_session, read_images

    options = ("label=3", f"sampler.spacing={spacing}", "sampler.num_steps=100")
    session = open_session(configure(f"ckpt={run}", "mode=interpolate", "device=cpu", *options, command="sample"))
    ends = read_images("images", digits, session.shape)
    with torch.no_grad(), tqdm(disable=True) as bar:
        frames = _frames(session, torch.tensor([0.0, 0.5, 1.0]).double(), torch.tensor([3, 3, 3]), [1, 2], ends, bar)
    apart = (ends[0] - ends[1]).square().mean().sqrt()
    for i, end in ((0, ends[0]), (2, ends[1])):
        assert (frames[i] - end).square().mean().sqrt() < 0.2 * apart
    assert (frames[1] - frames[0]).square().mean().sqrt() > 0.3 * apart


def test_pictures_made_noisy_to_an_early_time_stay_near_them(configure, run, digits):
    from tqdm import tqdm

    from ddpm_lightning.runs.modes.interpolate import _frames
    from ddpm_lightning.runs.sampling import open_session, read_images

    session = open_session(
        configure(f"ckpt={run}", "mode=interpolate", "device=cpu", "t=1", "label=3", command="sample")
    )
    ends = read_images("images", digits, session.shape)
    with torch.no_grad(), tqdm(disable=True) as bar:
        frames = _frames(session, torch.tensor([0.0, 0.5, 1.0]).double(), torch.tensor([3, 3, 3]), [1, 2], ends, bar)
    expected = torch.stack([ends[0], (ends[0] + ends[1]) / 2, ends[1]])
    assert (frames - expected).abs().max() < 0.2


def test_known_pixels_are_kept_exactly_and_the_others_differ_by_seed(make, digits, tmp_path):
    white = np.zeros((8, 8))
    white[2:6, 3:8] = 255
    mask = save(tmp_path / "mask.png", white)
    quick = ("sampler.num_steps=6", "jump=2", "resamples=2", "num_samples=3")
    out = make("inpaint", f"image={digits[0]}", f"mask={mask}", *quick)
    given = picture(digits[0])
    samples = [picture(out / f"seed-{i:06d}.png") for i in range(3)]
    for sampled in samples:
        assert np.array_equal(sampled[white == 0], given[white == 0])
        assert not np.array_equal(sampled[white > 0], given[white > 0])
    assert not np.array_equal(samples[0], samples[1])
    assert (out / "grid.png").is_file()
    box = make("inpaint", f"image={digits[0]}", "mask=[3,2,8,6]", *quick, out="box")  # the same pixels
    assert np.array_equal(picture(box / "seed-000001.png"), samples[1])


def test_a_reconstruction_is_the_better_the_more_steps_it_has(make, digits, capsys):
    found = {}
    for steps, refinements in ((5, 0), (100, 0), (100, 3)):
        more = (f"sampler.num_steps={steps}", f"refinements={refinements}", "label=1")
        out = make("reconstruct", f"images=[{digits[0]},{digits[1]}]", *more, out=f"{steps}-{refinements}")
        with open(out / "psnr.csv") as file:
            rows = list(csv.DictReader(file))
        assert [row["image"] for row in rows] == ["a.png", "b.png"]
        found[steps, refinements] = [float(row["psnr"]) for row in rows]
        assert f"mean PSNR {sum(found[steps, refinements]) / 2:.2f} dB over 2 images" in capsys.readouterr().out
    for i in range(2):
        assert found[5, 0][i] < found[100, 0][i] <= found[100, 3][i] + 0.5
    assert min(found[100, 3]) > 25


def test_a_folder_of_pictures_can_be_reconstructed(make, digits):
    save(digits[0].parent / "grid.png", np.zeros((90, 90)))  # of a folder of samples
    out = make("reconstruct", f"images={digits[0].parent}", "sampler.num_steps=3")
    assert len((out / "psnr.csv").read_text().splitlines()) == 3


def test_a_grid_has_a_row_for_each_combination_with_its_time(make, run):
    more = ("samplers=[ddim,heun]", "num_steps=[2,5]", "guidances=[0.0,2.0]", "num_samples=3")
    out = make("grid", *more)
    with open(out / "times.csv") as file:
        rows = list(csv.DictReader(file))
    assert [(row["sampler"], row["num_steps"], row["guidance"]) for row in rows] == [
        (s, n, w) for s in ("ddim", "heun") for n in ("2", "5") for w in ("0.0", "2.0")
    ]
    assert [row["network_calls"] for row in rows] == ["2", "4", "5", "10", "3", "6", "9", "18"]
    assert all(float(row["seconds"]) > 0 for row in rows)
    height = CELL + 2 + CAPTION_HEIGHT
    table = picture(out / "grid.png")
    assert table.shape[:2] == (8 * height, 3 * CELL + 2)
    expected = drawn(run, [0, 1, 2], [0, 1, 2], DDIMSampler(5))
    strong = table[3 * height + CAPTION_HEIGHT + 2 : 4 * height - 2]
    assert not np.array_equal(strong, table[2 * height + CAPTION_HEIGHT + 2 : 3 * height - 2])  # with guidance
    row = table[2 * height + CAPTION_HEIGHT + 2 : 3 * height - 2, :, 0][::6]
    for i in range(3):
        found = row[:, 2 + i * CELL : 50 + i * CELL : 6]
        assert np.abs(found.astype(int) - expected[i, 0].numpy()).max() <= 1


@pytest.mark.parametrize(
    ("mode", "overrides", "message"),
    [
        ("trajectory", ["num_samples=100"], r"num_samples=100: must be an integer in \[1, 65\)"),
        ("trajectory", ["stages=1"], r"stages=1: must be an integer in \[2, 101\)"),
        ("interpolate", ["images=5"], "images=5: must be two pictures"),
        ("interpolate", ["seeds=[1,99999999999999999999999]"], "seeds=.*must be two integers"),
        (
            "interpolate",
            ["images=[{a},{b}]", "sampler=ancestral", "sampler.num_steps=5"],
            "sampler: must be ddim with sampler.eta=0 to encode",
        ),
        ("interpolate", ["seeds=[1]"], r"seeds=\[1\]: must be two integers of at least 0"),
        ("interpolate", ["seeds=[1,-2]"], r"seeds=\[1, -2\]: must be two integers"),
        ("interpolate", ["frames=1"], r"frames=1: must be an integer in \[2, 1001\)"),
        ("interpolate", ["t=5"], "t=5: must be null, or with images an integer"),
        ("interpolate", ["images=[{a}]"], "images=.*must be two pictures"),
        ("interpolate", ["images=[{a},{b}]", "t=101"], r"t=101: must be null, or with images an integer in \[1, 100\]"),
        ("interpolate", ["images=[{a},{large}]"], "images: .*large.png must be of 8x8 pixels, and has 9x8"),
        ("interpolate", ["images=[{a},{colour}]"], "images: .*colour.png must be grey, and is in colour"),
        ("interpolate", ["images=[{a},{text}]"], "images: .*text.png can't be read as a picture"),
        ("inpaint", ["image={a}", "mask={black}"], "mask=.*black.png: must have white pixels"),
        ("inpaint", ["image={a}", "mask={large}"], "mask: .*large.png must be of 8x8 pixels"),
        ("inpaint", ["image={none}", "mask={black}"], "image: .*none.png can't be read as a picture"),
        ("inpaint", ["image={a}", "mask=[1,2,3]"], r"mask=\[1, 2, 3\]: must be a picture, or a box \[left, top,"),
        ("inpaint", ["image={a}", "mask=[4,4,9,8]"], r"mask=\[4, 4, 9, 8\]: must be a box within \[0, 0, 8, 8\]"),
        ("inpaint", ["image={a}", "mask={b}", "jump=0"], "jump must be at least 1, got 0"),
        ("reconstruct", ["images={a}", "sampler=heun"], "sampler: must be ddim with sampler.eta=0"),
        ("reconstruct", ["images={a}", "sampler.eta=0.5"], "sampler: must be ddim with sampler.eta=0"),
        ("reconstruct", ["images={a}", "refinements=-1"], "refinements=-1: must be an integer"),
        ("reconstruct", ["images={empty}"], "images=.*must be a picture, a list of them, or a folder that has some"),
        ("grid", ["num_steps=[]"], r"num_steps=\[\]: must be a list of numbers of at least 1"),
        ("grid", ["guidances=[]"], r"guidances=\[\]: must be a list of numbers of at least 0"),
        ("grid", ["guidances=[[1.0]]"], r"guidances=\[\[1.0\]\]: must be a list of numbers"),
        ("grid", ["samplers=ddim"], "samplers=ddim: must be a list of some of"),
        ("grid", ["samplers=[ddim,foo]"], r"samplers=\['ddim', 'foo'\]: must be a list of some of ancestral, ddim"),
        ("grid", ["num_steps=[5,500]"], r"num_steps must lie in \[1, 100\].*got 500"),
        ("selfcheck", [], "mode=selfcheck: must be one of samples, .*, grid; the others are those of evaluate.py"),
        ("grid", ["guidances=[-1.0]"], r"guidances=\[-1.0\]: must be a list of numbers of at least 0"),
    ],
)
def test_what_a_mode_can_not_do_is_refused_and_nothing_is_written(make, digits, tmp_path, mode, overrides, message):
    save(tmp_path / "large.png", np.zeros((9, 8)))
    save(tmp_path / "black.png", np.zeros((8, 8)))
    save(tmp_path / "colour.png", np.arange(192).reshape(8, 8, 3))
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty").mkdir()
    names = {name: tmp_path / f"{name}.png" for name in ("a", "b", "large", "black", "colour", "text", "none")}
    with pytest.raises(Refusal, match=message) as refusal:
        make(mode, *(override.format(**names, empty=tmp_path / "empty") for override in overrides))
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["trajectory", "interpolate", "grid"])
def test_the_command_makes_the_pictures_too(script, run, tmp_path, mode):
    """By Hydra's own way in."""
    short = {
        "trajectory": ["num_samples=1"],
        "interpolate": ["frames=3"],
        "grid": ["num_samples=1", "num_steps=[2,3]"],
    }
    script(
        "sample.py",
        f"ckpt={run}",
        f"mode={mode}",
        "sampler.num_steps=3",
        f"output_dir={tmp_path / 'out'}",
        *short[mode],
    )
    assert (tmp_path / "out" / ("strip.png" if mode == "trajectory" else "grid.png")).is_file()
