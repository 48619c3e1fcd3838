import json
import re
import shlex
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torch_fidelity import calculate_metrics
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.registry import register_feature_extractor

from ddpm_lightning.data.cifar10 import CIFAR10
from ddpm_lightning.data.digits import Digits
from ddpm_lightning.data.resident import LabelledImages
from ddpm_lightning.evaluation.features import Classifier, Extracted, Inception
from ddpm_lightning.evaluation.fidelity import Statistics, nearest
from ddpm_lightning.runs.evaluate import evaluate
from ddpm_lightning.runs.figures import extraction, sides
from ddpm_lightning.runs.figures.reference import Real
from ddpm_lightning.runs.figures.scores import accuracy, by_class, combined, score
from ddpm_lightning.runs.refusal import Failure, Refusal
from ddpm_lightning.runs.sampling import open_session
from ddpm_lightning.runs.train import train

SMOKE = ("experiment=smoke", "callbacks.progress=null", "+trainer.enable_progress_bar=false", "callbacks.samples=null")
FEW = "ignore:.*samples are fewer than 50000"
pytestmark = pytest.mark.filterwarnings(FEW)


@pytest.fixture(scope="module")
def digits():
    return Digits(root="unused", image_size=8, channels=1, batch_size=64, num_classes=10)


@pytest.fixture(scope="module")
def classifier(digits):
    found = Classifier()
    found.fit(*digits.split("train"))
    return found


def real_of(rows):
    return Real(rows, Statistics.of(rows.features))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    from hydra import compose, initialize_config_dir

    from ddpm_lightning.runs.refusal import CONF

    folder = tmp_path_factory.mktemp("trained") / "smoke"
    with initialize_config_dir(str(CONF), version_base="1.3"):
        train(compose("train", overrides=[f"output_dir={folder}", *SMOKE, "trainer.max_steps=5"]))
    return folder


@pytest.fixture
def smoke(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "smoke")


@pytest.fixture
def run(configure, smoke, tmp_path, monkeypatch):
    """Evaluate the smoke run, or other images, quickly; gives the record that was written."""
    monkeypatch.chdir(tmp_path)

    def evaluated(*overrides, samples=("num_samples=50", "sampler.num_steps=2"), ckpt=smoke):
        given = samples if ckpt is None else (f"ckpt={ckpt}", *samples)
        cfg = configure(*given, *overrides, command="evaluate")
        value = evaluate(cfg)
        folder = tmp_path / "runs" / "evaluation" if ckpt is None else ckpt / "evaluation"
        newest = max(folder.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
        record = json.loads(newest.read_text())
        assert record["metrics"][next(iter(record["metrics"]))] == value or len(record["metrics"]) > 1
        return record

    return evaluated


def test_an_evaluation_prints_its_figures_and_writes_the_protocol(run, capsys):
    record = run(
        "metrics=[fid,kid,is,prc,memorisation]", "guidance=1.0", samples=("num_samples=100", "sampler.num_steps=2")
    )
    out = capsys.readouterr().out
    figures, protocol = record["metrics"], record["protocol"]
    assert list(figures)[:7] == ["fid", "is", "kid", "kid_std", "precision", "recall", "memorisation"]
    assert figures["accuracy_held_out"] == protocol["features"]["accuracy"] == pytest.approx(0.993, abs=0.001)
    assert protocol["network_calls"] == record["network_calls"] == 4
    assert protocol["images_seen"] == 5 * 32
    assert protocol["reference"].items() >= {"set": "Digits train", "count": 1347, "format": "array"}.items()
    assert len(protocol["reference"]["sha256"]) == len(protocol["generated"]["checkpoint"]["sha256"]) == 64
    assert record["seconds"] > 0
    assert record["line"] in out
    for said in (
        f"FD-100 {figures['fid']:#.5g} | Digits train 1347 array sha256 {protocol['reference']['sha256'][:8]} no-flip",
        "torch-fidelity 0.4",
        "accuracy 0.9933",
        "EMA 0.9999 @5 (0.00016M images)",
        "DDIMSampler 2 spacing=time clip_x0=True eta=0.0 T=100 NFE 4",
        "cond w=1.0 | seeds 0-99 | torch",
        "uint8 rounded",
    ):
        assert said in record["line"]


def test_an_interrupted_evaluation_goes_on_and_ends_like_an_uninterrupted_one(run, smoke, monkeypatch):
    whole = run("metrics=[fid]", "batch_size=16")["metrics"]
    shutil.rmtree(smoke / "evaluation")
    drawn = []
    original = sides.Samples.images

    def interrupted(self, indices):
        drawn.append(list(indices))
        if len(drawn) == 3:
            raise KeyboardInterrupt
        return original(self, indices)

    monkeypatch.setattr(sides.Samples, "images", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run("metrics=[fid]", "batch_size=16")
    assert run("metrics=[fid]", "batch_size=16")["metrics"] == whole
    assert sorted(i for batch in drawn for i in batch) == sorted(
        [*range(50), *range(32, 48)]
    )  # those of the third anew


def test_a_full_disk_ends_in_one_line_and_what_is_there_is_used(run, smoke, monkeypatch):
    import errno

    from ddpm_lightning.evaluation import store

    original, written = store.replace_whole, []

    def full(path, write):
        if path.suffix == ".npz" and len(written) >= 4:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        written.append(path)
        original(path, write)

    more = ("metrics=[fid]", "batch_size=16", "cache=cache")
    whole = run(*more)["metrics"]
    shutil.rmtree(smoke / "evaluation")
    with monkeypatch.context() as patch:
        patch.setattr(store, "replace_whole", full)
        with pytest.raises(Failure, match=r"part-.*npz can't be written \(No space left on device\)"):
            run(*more)
    kept = len(list(smoke.glob("evaluation/features/*/part-*")))
    assert 0 < kept < 4
    assert run(*more)["metrics"] == whole


@pytest.mark.slow
def test_two_processes_give_the_figure_of_one(run, smoke):
    one = run("metrics=[fid,prc]", "keep_samples=true")
    files = {path.name: path.read_bytes() for path in smoke.glob("evaluation/samples-*/*.png")}
    shutil.rmtree(smoke / "evaluation")
    two = run("metrics=[fid,prc]", "keep_samples=true", "devices=2")
    assert two["metrics"] == one["metrics"]
    assert two["line"] == one["line"]
    assert len(list(smoke.glob("evaluation/features/*/part-*"))) == 2
    assert {path.name: path.read_bytes() for path in smoke.glob("evaluation/samples-*/*.png")} == files
    assert len(files) == 50


def test_kept_samples_score_like_the_ones_that_were_never_written(run, smoke):
    made = run("metrics=[fid,kid,prc]", "keep_samples=true")["metrics"]
    [folder] = smoke.glob("evaluation/samples-*")
    read = run(f"images={folder}", "data=digits", "metrics=[fid,kid,prc]", ckpt=None, samples=())
    assert read["metrics"] == {name: made[name] for name in read["metrics"]}
    assert "50 png sha256" in read["line"]
    pixels = np.stack([np.array(Image.open(path)) for path in sorted(folder.iterdir())])
    np.savez(folder.parent / "x.npz", images=pixels[..., None], labels=np.arange(50) % 10)
    packed = run(f"images={folder.parent / 'x.npz'}", "data=digits", "metrics=[fid]", ckpt=None, samples=())
    assert packed["metrics"]["fid"] == made["fid"]
    assert packed["metrics"]["accuracy"] == made["accuracy"]
    [missing, *_] = folder.iterdir()
    missing.unlink()
    run("metrics=[fid]", "keep_samples=true")  # what is asked for is there after, though no feature was missing
    assert missing.exists()


def test_samples_are_rounded_to_bytes_not_cut(configure, smoke, monkeypatch):
    def given(denoiser, sampler, shape, seeds, *rest, **more):
        yield torch.stack([torch.full(shape, (seed + 0.6) / 127.5 - 1) for seed in seeds])

    monkeypatch.setattr(sides, "generate", given)
    side = sides.Samples(open_session(configure(f"ckpt={smoke}", command="evaluate")), range(50))
    assert side.images(side.indices)[:, 0, 0, 0].tolist() == list(range(1, 51))


def test_real_images_score_far_better_than_noise_and_copies_are_told(digits, classifier):
    train_split, held_out = digits.split("train"), digits.split("val")
    metrics = ["fid", "prc", "memorisation"]

    def figures(images):
        return score(metrics, classifier(images), real_of(classifier(train_split.images)), classifier(held_out.images))

    copies, real = figures(train_split.images), figures(held_out.images)
    noise = figures(torch.randint(0, 256, (450, 1, 8, 8), dtype=torch.uint8))
    assert copies["fid"] == pytest.approx(0, abs=1e-6)
    assert copies["memorisation"] == 0
    assert real["memorisation"] == 1
    assert real["fid"] < 1
    assert noise["fid"] > 30
    assert noise["precision"] < 0.3
    assert real["precision"] > 0.8


def test_one_class_alone_is_precise_and_recalls_little_and_accuracy_is_that_of_the_generated(digits, classifier):
    held_out, real = digits.split("val"), real_of(classifier(digits.split("train").images))
    threes = classifier(held_out.images[held_out.labels == 3])
    figures = score(["prc"], threes, real)
    assert figures["precision"] > 0.8
    assert figures["recall"] < 0.3
    count = len(threes.features)
    assert accuracy(threes, [3] * count) == pytest.approx(1, abs=0.03)
    assert accuracy(threes, [4] * count) == 0
    assert accuracy(classifier(held_out.images), held_out.labels.tolist()) == pytest.approx(0.993, abs=0.001)
    assert accuracy(threes, None) is None


def test_each_class_is_compared_with_its_own(digits, classifier):
    train_split = digits.split("train")
    real, labels = classifier(train_split.images), train_split.labels.tolist()
    table = by_class(real, labels, real, labels, digits.class_names)
    assert [row[0] for row in table] == ["class", *map(str, range(10))]
    assert sum(row[1] for row in table[1:]) == 1347
    for _, made, there, distance, right in table[1:]:
        assert made == there
        assert distance == pytest.approx(0, abs=1e-5)
        assert right > 0.98
    swapped = [{3: 8, 8: 3}.get(label, label) for label in labels]
    table = by_class(real, swapped, real, labels, None)
    assert [row[0] for row in table[1:] if row[3] > 1] == ["3", "8"]
    with pytest.raises(Refusal, match="classwise=true: needs two .* of class 9 there are 0 generated and 1[0-9]+ real"):
        by_class(real, [0 if label == 9 else label for label in labels], real, labels, digits.class_names)


def test_several_sets_of_seeds_give_mean_deviation_and_least_value(run, capsys):
    first, second = (run("metrics=[fid]", f"seed={seed}")["metrics"]["fid"] for seed in (0, 50))
    capsys.readouterr()
    both = run("metrics=[fid]", "repeats=2")
    assert both["metrics"]["fid"] == pytest.approx((first + second) / 2)
    assert both["spread"]["fid"]["values"] == [first, second]
    assert both["spread"]["fid"]["min"] == min(first, second)
    assert both["spread"]["fid"]["std"] == pytest.approx(abs(first - second) / 2**0.5)
    assert both["protocol"]["ranges"] == [[0, 49], [50, 99]]
    assert "seeds 0-49, 50-99" in both["line"]
    assert f"least {min(first, second):#.5g}" in both["line"]
    assert combined([{"fid": 1.0}]) == ({"fid": 1.0}, {})


def test_statistics_stand_for_the_images_they_are_of(run, tmp_path):
    whole = run("metrics=[fid]", f"export_statistics={tmp_path / 'stats.npz'}")["metrics"]["fid"]
    read = run("metrics=[fid]", f"reference={tmp_path / 'stats.npz'}")
    assert read["metrics"]["fid"] == whole
    assert "Digits train 1347 array" in read["line"]
    with pytest.raises(Refusal, match=r"metrics=\['prc'\]: needs reference images, and .* holds statistics alone"):
        run("metrics=[fid,prc]", f"reference={tmp_path / 'stats.npz'}")
    with pytest.raises(Refusal, match="must be of the same features, is of classifier sha256"):
        run("metrics=[fid]", f"reference={tmp_path / 'stats.npz'}", "features=pixels")
    arrays = dict(np.load(tmp_path / "stats.npz"))
    np.savez(tmp_path / "foreign.npz", mu=arrays["mu"].astype(np.float32), sigma=arrays["sigma"])
    with pytest.warns(UserWarning, match="does not say what it is of"):
        foreign = run("metrics=[fid]", f"reference={tmp_path / 'foreign.npz'}")
    assert foreign["metrics"]["fid"] == pytest.approx(whole, rel=1e-4)
    about = json.loads(str(arrays["about"]))
    about["features"]["sha256"] = "0" * 64
    np.savez(tmp_path / "other.npz", **{**arrays, "about": json.dumps(about)})
    with pytest.raises(Refusal, match="must be of the same features, is of classifier sha256 00000000"):
        run("metrics=[fid]", f"reference={tmp_path / 'other.npz'}")
    np.savez(tmp_path / "list.npz", **{**arrays, "about": json.dumps([1, 2])})
    with pytest.warns(UserWarning, match="does not say what it is of"):
        run("metrics=[fid]", f"reference={tmp_path / 'list.npz'}")
    np.savez(tmp_path / "moved.npz", **{**arrays, "mu": arrays["mu"] + 1})  # but says the same of itself
    moved = run("metrics=[fid]", f"reference={tmp_path / 'moved.npz'}")
    assert moved["metrics"]["fid"] > whole + 1
    assert moved["line"].split(" | ")[1:] != read["line"].split(" | ")[1:]
    assert "foreign.npz" in foreign["line"]
    np.savez(tmp_path / "odd.npz", mu=arrays["mu"], sigma=arrays["sigma"][:3])
    with pytest.raises(Refusal, match=r"reference=.*odd.npz: .*sigma \(D, D\), got \(32,\) and \(3, 32\)"):
        run("metrics=[fid]", f"reference={tmp_path / 'odd.npz'}")
    np.savez(tmp_path / "narrow.npz", mu=arrays["mu"][:3], sigma=arrays["sigma"][:3, :3])
    with pytest.warns(UserWarning, match="does not say"), pytest.raises(Refusal, match="of 32 features, has 3"):
        run("metrics=[fid]", f"reference={tmp_path / 'narrow.npz'}")


class Tiny(Inception):
    """Inception's place and face, not its size."""

    def __init__(self):
        self.protocol = {"name": "inception-tiny", "layer": "4", "sha256": "0" * 64}

    def to(self, device):
        assert str(device) == "cpu"

    def __call__(self, images):
        flat = images.flatten(1).float()[:, :4]
        return Extracted(flat, flat)


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(extraction, "Inception", Tiny)
    monkeypatch.setattr("ddpm_lightning.evaluation.suited.Inception", Tiny)


def coloured(folder, kind, count=12, size=8):
    folder.mkdir(parents=True)
    for i in range(count):
        pixels = np.random.default_rng(i).integers(0, 256, (size, size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02}.{kind}")
    return folder


def test_what_moves_a_figure_is_warned_of(run, tiny, tmp_path):
    a, b = coloured(tmp_path / "a", "png"), coloured(tmp_path / "b", "jpg")
    two = (f"images={a}", "metrics=[fid]")
    with pytest.warns(UserWarning, match="12 samples are fewer than 50000, which biases the Frechet distance upwards"):
        record = run(*two, f"reference={a}", ckpt=None, samples=())
    assert record["metrics"]["fid"] == pytest.approx(0, abs=1e-3)
    assert record["line"].startswith("FID-12 ")
    with pytest.warns(UserWarning, match="the reference comes from JPEG files and the other side does not"):
        run(*two, f"reference={b}", ckpt=None, samples=())
    with pytest.warns(UserWarning, match="what is scored comes from JPEG files and the other side does not"):
        run(f"images={b}", "metrics=[fid]", f"reference={a}", ckpt=None, samples=())


def test_grey_images_in_inceptions_features_are_warned_of(run, monkeypatch):
    class Grey(Tiny):
        def __init__(self, weights=None, sha256=""):
            super().__init__()

    monkeypatch.setattr("ddpm_lightning.evaluation.features.Inception", Grey)
    monkeypatch.setattr(extraction, "Inception", Inception)
    with pytest.warns(UserWarning, match="grey images in Inception's features: the figures compare with no published"):
        run("features=inception", "metrics=[fid]")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["reference={small}"], r"reference=.*small: must hold images of 3x8x8, as the side that is scored"),
        (["reference={few}"], r"reference=.*few: must hold at least 10 images, has 3"),
        (["reference={a}", "num_samples=13"], r"images=.*: must hold at least 13 images, has 12"),
        (["reference={a}", "metrics=[memorisation]"], r"metrics=\[memorisation\]: needs reference=train, .* got .*a"),
        (["reference=train", "metrics=[memorisation]"], "data: must be given, as data=..., where there is no ckpt"),
        (["reference=train"], "data: must be given, as data=..., where there is no ckpt"),
        (["reference={a}", "repeats=2"], "repeats, keep_samples, devices: must be 1, false and 1 for images="),
        (["reference={a}", "device=foo"], "device=foo: must be auto, or one of"),
        (["reference={a}", "images_sha256=00000000"], "images_sha256=00000000: must be that of the images, sha256-"),
        (["reference={a}", "features=classifier", "data=digits"], r"data: must hold images of \(3, 8, 8\), as what"),
        (["reference={a}", "classwise=true"], "classwise=true: needs labels on either side"),
        (["reference={a}", "features=classifier"], "data: must be given"),
        (["reference={a}", "features=pixels", "metrics=[is]"], r"metrics=\[is\]: needs features with classes"),
    ],
)
def test_folders_that_do_not_do_are_refused(run, tiny, tmp_path, overrides, message):
    names = {"a": coloured(tmp_path / "a", "png"), "few": coloured(tmp_path / "few", "png", 3)}
    names["small"] = coloured(tmp_path / "small", "png", size=7)
    given = [o.format(**names) for o in overrides]
    with pytest.raises(Refusal, match=message):
        run(f"images={names['a']}", "metrics=[fid]", *given, ckpt=None, samples=())


def test_colour_sets_are_scored_by_inception_against_their_training_split(configure, tmp_path, monkeypatch, tiny):
    def load(self, split):
        return LabelledImages(torch.randint(0, 256, (40, 3, 32, 32), dtype=torch.uint8), torch.arange(40) % 10)

    monkeypatch.setattr(CIFAR10, "load", load)
    monkeypatch.setattr(CIFAR10, "prepare_data", lambda self: None)
    few = ("data=cifar10", "model=unet_tiny", "data.batch_size=4", "trainer.max_steps=1")
    train(configure(*SMOKE, *few, output_dir="c"))
    asked = (
        f"ckpt={tmp_path / 'c'}",
        f"data.root={tmp_path}",
        "num_samples=20",
        "sampler.num_steps=1",
        "metrics=[fid]",
    )
    assert evaluate(configure(*asked, command="evaluate")) > 0
    [file] = (tmp_path / "c" / "evaluation").glob("*.json")
    assert json.loads(file.read_text())["protocol"]["features"]["name"] == "inception-tiny"


def test_without_inceptions_weights_and_network_one_line_says_what_to_do(run, monkeypatch, tmp_path):
    from urllib.error import URLError

    def offline(*args, **kwargs):
        raise URLError("no network")

    monkeypatch.setattr("torch.hub.urlopen", offline)
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path / "hub"))
    with pytest.raises(Refusal, match="features.weights must be the path of weights-inception-2015-12-05") as refusal:
        run("features=inception")
    assert "\n" not in str(refusal.value)


def test_the_whole_way_agrees_with_torch_fidelitys_own(run, tmp_path):
    """Its command on the same folders, in the same features, against ours."""

    class FirstFour(FeatureExtractorBase):
        @staticmethod
        def get_provided_features_list():
            return ("4",)

        @staticmethod
        def get_default_feature_layer_for_metric(metric):
            return "4"

        @staticmethod
        def can_be_compiled():
            return False

        @staticmethod
        def get_dummy_input_for_compile():
            return None

        def __init__(self, name, features_list, **kwargs):
            super().__init__(name, features_list)

        def forward(self, images):
            return (images.flatten(1)[:, :192].float() / 127.5 - 1,)

    register_feature_extractor("pixels-of-8x8", FirstFour)
    a, b = coloured(tmp_path / "a", "png", 40), coloured(tmp_path / "b", "png", 60)
    theirs = calculate_metrics(
        input1=str(a),
        input2=str(b),
        fid=True,
        kid=True,
        prc=True,
        cuda=False,
        save_cpu_ram=True,
        verbose=False,
        cache=False,
        kid_subset_size=40,
        feature_extractor="pixels-of-8x8",
        batch_size=16,
    )
    both = (f"images={a}", f"reference={b}", "features=pixels", "metrics=[fid,kid,prc]")
    ours = run(*both, ckpt=None, samples=())["metrics"]
    assert ours["fid"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-4)
    assert ours["kid"] == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-4)
    assert (ours["precision"], ours["recall"]) == (theirs["precision"], theirs["recall"])


def test_other_metrics_draw_nothing_again_and_have_a_file_of_their_own(run, smoke, monkeypatch):
    first = run("metrics=[fid]", "repeats=2", samples=("num_samples=20", "sampler.num_steps=2"))
    monkeypatch.setattr(sides.Samples, "images", None)
    second = run("metrics=[kid]", "repeats=2", samples=("num_samples=20", "sampler.num_steps=2"))
    monkeypatch.undo()
    assert set(first["spread"]) == {"fid", "accuracy"} & first["metrics"].keys() & set(first["spread"]) | {"fid"}
    assert "kid_std" not in second["spread"]
    assert "fid" not in second["metrics"]
    assert first["line"].startswith("FD-20")
    assert second["line"].startswith("KD-20")
    assert second["protocol"]["kid_subsets"] == [100, 20]
    assert len(list((smoke / "evaluation").glob("*.json"))) == 2


def test_the_nearest_pairs_are_drawn_as_they_were_scored(run, smoke, digits, classifier):
    """In the precision of the scored images, and without a trace among those that are kept."""
    more = ("metrics=[memorisation]", "keep_samples=true", "precision=bf16-mixed")
    run(*more)
    [picture] = smoke.glob("evaluation/*-nearest.png")
    [folder] = smoke.glob("evaluation/samples-*")
    kept = torch.stack([torch.from_numpy(np.array(Image.open(path)))[None] for path in sorted(folder.iterdir())])
    training = digits.split("train").images
    distances, places = nearest(classifier(kept).features, classifier(training).features)
    worst = distances.argsort(stable=True)[:10]
    with Image.open(picture) as image:
        shown = np.array(image)[..., 0]
    first = len(shown) - 2 * 50  # below the captions
    for i, sample in enumerate(worst):
        cells = [shown[top : top + 48 : 6, 2 + 50 * i : 50 * i + 50 : 6] for top in (first, first + 50)]
        assert np.array_equal(cells[0], kept[sample, 0])
        assert np.array_equal(cells[1], training[places[sample], 0])


def test_samples_are_drawn_in_the_precision_asked_for_and_features_in_float32(run, monkeypatch):
    seen = set()
    original, extracting = sides.generate, Classifier.__call__

    def drawing(*arguments):
        seen.add(("samples", torch.is_autocast_enabled("cpu")))
        return original(*arguments)

    def looking(self, images):
        seen.add(("features", torch.is_autocast_enabled("cpu")))
        return extracting(self, images)

    monkeypatch.setattr(sides, "generate", drawing)
    monkeypatch.setattr(Classifier, "__call__", looking)
    run("metrics=[fid]", "precision=bf16-mixed")
    assert seen == {("samples", True), ("features", False)}


def test_what_is_kept_is_of_the_same_software_and_of_the_same_seeds(run, smoke, monkeypatch):
    """A store is another one for another version, and what two commands share out differently stays apart."""
    whole = run("metrics=[fid]", samples=("num_samples=64", "sampler.num_steps=2"))["metrics"]
    monkeypatch.setitem(extraction.VERSIONS, "torch-fidelity", "0.0")
    run("metrics=[fid]", samples=("num_samples=64", "sampler.num_steps=2"))
    stores = list(smoke.glob("evaluation/features/*/key.json"))
    assert len(stores) == 2
    keys = [json.loads(path.read_text())["key"] for path in stores]
    assert all(key["device"] == "cpu" and set(key["versions"]) == set(extraction.VERSIONS) for key in keys)
    monkeypatch.undo()
    monkeypatch.chdir(smoke.parent)
    for part in smoke.glob("evaluation/features/*/part-*"):
        part.unlink()
    cfg = ("metrics=[fid]", "batch_size=32")
    run(*cfg, samples=("num_samples=32", "sampler.num_steps=2", "seed=32"))
    assert run(*cfg, samples=("num_samples=64", "sampler.num_steps=2"))["metrics"] == whole


def classes(folder, names, digits):
    images, labels = digits.split("val")
    for name in names:
        (folder / name).mkdir(parents=True)
        for i, image in enumerate(images[labels == int(name)][:12]):
            Image.fromarray(image[0].numpy()).save(folder / name / f"{i}.png")
    return folder


def test_class_folders_are_matched_by_their_names(run, digits, tmp_path):
    some = classes(tmp_path / "some", "12345", digits)  # without class 0, the first
    given = ("data=digits", "metrics=[fid]", f"images={some}")
    assert run(*given, ckpt=None, samples=())["metrics"]["accuracy"] > 0.95
    with pytest.raises(Refusal, match="of class 0 there are 0 generated and 1[0-9]+ real ones"):
        run(*given, "classwise=true", ckpt=None, samples=())
    (tmp_path / "nested").mkdir()
    shutil.move(some / "1", tmp_path / "nested" / "png")
    nested = ("data=digits", "metrics=[fid]", f"images={tmp_path / 'nested'}")
    assert "accuracy" not in run(*nested, ckpt=None, samples=())["metrics"]


def test_some_of_the_images_are_drawn_from_all_of_them(run, digits):
    """A set may be sorted by class."""
    record = run("images=train", "data=digits", "metrics=[fid]", "num_samples=300", ckpt=None, samples=())
    assert record["metrics"]["fid"] < 2
    assert "| 300 drawn by seed 0 |" in record["line"]
    other = run("images=train", "data=digits", "metrics=[fid]", "num_samples=300", "seed=1", ckpt=None, samples=())
    assert other["metrics"]["fid"] != record["metrics"]["fid"]


@pytest.mark.slow
def test_the_printed_command_gives_the_printed_figure(script, smoke, tmp_path):
    asked = ("sampler=unipc", "sampler.num_steps=3", "num_samples=40", "metrics=[fid,prc]", "seed=7", "guidance=0.5")
    first = script("evaluate.py", "ckpt=smoke", *asked)
    assert "evaluate.py: warning: 40 samples are fewer than 50000" in first.stderr
    [line] = re.findall(r"^again: python scripts/(.*)$", first.stdout, re.MULTILINE)
    shutil.rmtree(smoke / "evaluation")
    again = script(*shlex.split(line), XDG_CACHE_HOME=str(tmp_path / "empty"))
    assert again.stdout == first.stdout
    elsewhere = line.replace("ckpt_sha256=sha256-", "ckpt_sha256=sha256-f0f0")
    assert "must be that of smoke/checkpoints/last.ckpt" in script(*shlex.split(elsewhere), check=2).stderr


@pytest.mark.parametrize("features", ["classifier", "pixels"])
def test_the_selfcheck_orders_what_is_known_to_be_ordered(configure, tmp_path, monkeypatch, features, capsys):
    monkeypatch.chdir(tmp_path)
    cfg = ("mode=selfcheck", "data=digits", f"features={features}", "num_images=500")
    assert evaluate(configure(*cfg, command="evaluate")) > 0
    rows = dict(re.findall(r"^(\S.*?)\s{2,}(-?\d+\.\d*)$", capsys.readouterr().out, re.MULTILINE))
    assert rows["train, train"] == "0.0000"
    noise = [float(rows[f"noise {size}"]) for size in (0.02, 0.05, 0.1, 0.2, 0.5)]
    assert noise == sorted(noise)
    assert noise[0] < float(rows["two halves"])
    # a generator of noise that does not grow
    monkeypatch.setattr("ddpm_lightning.runs.figures.selfcheck.PerImageNoise.randn", lambda self, s: torch.zeros(1, *s))
    with pytest.raises(Failure, match="selfcheck: more noise must be farther away"):
        evaluate(configure(*cfg, "noise=[.01,.02]", f"cache={tmp_path / 'fresh'}", command="evaluate"))


def test_a_checkpoint_does_not_decide_which_folders_are_made(run, smoke, tmp_path):
    file = smoke / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(file, weights_only=True)
    checkpoint["config"]["data"] |= {"_target_": "ddpm_lightning.data.mnist.MNIST", "root": str(tmp_path / "chosen")}
    torch.save(checkpoint, file)
    with pytest.raises(Refusal, match="data.root must be given: the checkpoint was trained on data in .*chosen"):
        run()
    assert not (tmp_path / "chosen").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["metrics=[fid,bleu]"], "metrics=.*must be null, or a list of some of fid, kid, is, prc, memorisation"),
        (["metrics=[]"], "metrics=.*must be null, or a list"),
        (["metrics=fid"], "metrics=fid: must be null, or a list"),
        (["metrics=[is]", "features=pixels"], r"metrics=\[is\]: needs features with classes"),
        (["reference_sha256=sha256-00000000"], "reference_sha256=sha256-00000000: must be that of the images, sha256-"),
        (["export_statistics=/proc/x/y.npz"], "export_statistics=/proc/x/y.npz: must be a file that can be written"),
        (["device=foo"], "device=foo: must be auto, or one of cpu, cuda, mps"),
        (["features=inception", "features.weights=nowhere"], "features.weights must be the path of"),
        (["sampler.num_steps=500"], r"sampler.num_steps must lie in \[1, 100\]"),
        (["num_samples=9"], r"num_samples=9: must be an integer in \[10, "),
        (["repeats=0"], r"repeats=0: must be an integer in \[1, "),
        (["devices=99"], r"devices=99: must lie in \[1, \d+\], the cores of this machine"),
        (["images=train"], "ckpt=.*, images=train: one of the two must be given"),
        (["ckpt_sha256=abc"], "ckpt_sha256=abc: must be that of .*last.ckpt, "),
        (
            ["reference=nowhere", "metrics=[fid]"],
            "reference=nowhere: must be train, val, a folder of images, or an .npz file",
        ),
        (
            ["mode=trajectory"],
            "mode=trajectory: must be one of fidelity, selfcheck, likelihood, reconstruction; the others",
        ),
        (["mode=selfcheck", "noise=[]"], r"noise=\[\]: must be a list of numbers"),
        (["mode=selfcheck", "noise=[.5,.1]"], r"noise=\[0.5, 0.1\]: must be a list of numbers above 0 that grow"),
        (["mode=selfcheck", "num_images=3"], "num_images=3: must be an integer in"),
    ],
)
def test_impossible_values_are_refused(run, overrides, message):
    with pytest.raises(Refusal, match=message):
        run(*overrides, samples=())


def test_an_evaluation_asks_for_every_class_in_turn_and_compares_with_the_training_split(run, monkeypatch, digits):
    asked = []

    def copies(denoiser, sampler, shape, seeds, labels, *rest):
        asked.extend(labels)
        yield digits.split("train").images[list(seeds)].float() / 127.5 - 1

    monkeypatch.setattr(sides, "generate", copies)
    assert run("metrics=[memorisation]", samples=("num_samples=25",))["metrics"]["memorisation"] == 0
    assert asked[:25] == [i % 10 for i in range(25)]
