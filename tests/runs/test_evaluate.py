import json

import pytest
import torch

import ddpm_lightning.runs.evaluate as module
from ddpm_lightning.data.cifar10 import CIFAR10
from ddpm_lightning.data.digits import Digits
from ddpm_lightning.data.resident import LabelledImages
from ddpm_lightning.evaluation.features import Classifier, Extracted
from ddpm_lightning.runs.evaluate import accuracies, evaluate, score
from ddpm_lightning.runs.refusal import Refusal
from ddpm_lightning.runs.train import train

SMOKE = ("experiment=smoke", "callbacks.progress=null", "+trainer.enable_progress_bar=false", "callbacks.samples=null")


@pytest.fixture(scope="module")
def digits():
    return Digits(root="unused", image_size=8, channels=1, batch_size=64, num_classes=10)


@pytest.fixture
def smoke(configure, tmp_path):
    train(configure(*SMOKE, "trainer.max_steps=5", output_dir="smoke"))
    return tmp_path / "smoke"


def test_an_evaluation_prints_its_figures_and_writes_the_protocol(configure, smoke, capsys):
    more = ("num_samples=100", "sampler.num_steps=2", "metrics=[fid,kid,is,prc,memorisation]", "guidance=1.0")
    first = evaluate(configure(f"ckpt={smoke}", *more, command="evaluate"))
    out = capsys.readouterr().out
    [file] = (smoke / "evaluation").glob("*.json")
    record = json.loads(file.read_text())
    figures, protocol = record["metrics"], record["protocol"]
    assert list(figures)[:6] == ["fid", "kid", "kid_std", "is", "precision", "recall"]
    assert figures["fid"] == first
    assert figures["accuracy_held_out"] == pytest.approx(0.993, abs=0.001)
    assert protocol["network_calls"] == 4
    assert protocol["images_seen"] == 5 * 32
    assert protocol["reference"].items() >= {"set": "Digits", "split": "train", "count": 1347, "flip": False}.items()
    assert len(protocol["reference"]["sha256"]) == len(protocol["checkpoint"]["sha256"]) == 64
    for said in (
        f"fid-100 {first:.4f}",
        "torch-fidelity 0.4",
        "(0.00016M images)",
        "seeds 0-99",
        "NFE 4",
        "cond w=1.0",
        "ema 0.9999 @5",
    ):
        assert said in out


def test_the_same_command_gives_the_same_figures(configure, smoke):
    cfg = (f"ckpt={smoke}", "num_samples=50", "sampler.num_steps=2", "metrics=[fid]")
    assert evaluate(configure(*cfg, command="evaluate")) == evaluate(configure(*cfg, command="evaluate"))


def test_real_images_score_far_better_than_noise_and_copies_are_told(digits):
    train_split, held_out = digits.split("train"), digits.split("val")
    features = Classifier()
    features.fit(*train_split)
    metrics = ["fid", "prc", "memorisation"]

    def figures(images):
        return score(metrics, features, images, train_split.images, held_out.images, 200)

    copies, real = figures(train_split.images), figures(held_out.images)
    noise = figures(torch.randint(0, 256, (450, 1, 8, 8), dtype=torch.uint8))
    assert copies["fid"] == pytest.approx(0, abs=1e-3)
    assert copies["memorisation"] == 0
    assert real["memorisation"] == 1
    assert real["fid"] < 1
    assert noise["fid"] > 30
    assert noise["precision"] < 0.3
    assert real["precision"] > 0.8


def test_one_class_alone_is_precise_and_recalls_little_and_accuracy_is_that_of_the_generated(digits):
    train_split, held_out = digits.split("train"), digits.split("val")
    features = Classifier()
    features.fit(*train_split)
    threes = held_out.images[held_out.labels == 3]
    figures = score(["prc"], features, threes, train_split.images, held_out.images, 200)
    assert figures["precision"] > 0.8
    assert figures["recall"] < 0.3
    for label, accuracy in ((3, 1.0), (4, 0.0)):
        found = accuracies(features, threes, torch.full((len(threes),), label), held_out)
        assert found["accuracy"] == pytest.approx(accuracy, abs=0.03)
        assert found["accuracy_held_out"] == pytest.approx(0.993, abs=0.001)


def test_colour_sets_are_scored_by_inception_with_a_warning_for_few_samples(configure, tmp_path, monkeypatch):

    class Tiny(module.Inception):
        """Inception's place and face, not its size."""

        def __init__(self):
            self.protocol = {"name": "tiny", "sha256": "0" * 64}

        def to(self, device):
            assert str(device) == "cpu"

        def __call__(self, images):
            flat = images.flatten(1).float()[:, :4]
            return Extracted(flat, flat)

    def load(self, split):
        return LabelledImages(torch.randint(0, 256, (40, 3, 32, 32), dtype=torch.uint8), torch.arange(40) % 10)

    monkeypatch.setattr(CIFAR10, "load", load)
    monkeypatch.setattr(CIFAR10, "prepare_data", lambda self: None)
    monkeypatch.setattr(module, "Inception", Tiny)
    train(
        configure(*SMOKE, "data=cifar10", "model=unet_tiny", "data.batch_size=4", "trainer.max_steps=1", output_dir="c")
    )
    with pytest.warns(UserWarning, match="num_samples=20: below the usual 50000, which biases"):
        evaluate(
            configure(
                f"ckpt={tmp_path / 'c'}",
                f"data.root={tmp_path}",
                "num_samples=20",
                "sampler.num_steps=1",
                "metrics=[fid]",
                command="evaluate",
            )
        )


def test_without_inceptions_weights_and_network_one_line_says_what_to_do(configure, tmp_path, monkeypatch):
    from urllib.error import URLError

    def offline(*args, **kwargs):
        raise URLError("no network")

    def load(self, split):
        return LabelledImages(torch.zeros(40, 3, 32, 32, dtype=torch.uint8), torch.arange(40) % 10)

    monkeypatch.setattr(CIFAR10, "load", load)
    monkeypatch.setattr(CIFAR10, "prepare_data", lambda self: None)
    monkeypatch.setattr("torch.hub.urlopen", offline)
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path / "hub"))
    small = ("data=cifar10", "model=unet_tiny", "data.batch_size=4", "trainer.max_steps=1")
    train(configure(*SMOKE, *small, output_dir="c"))
    few = (f"ckpt={tmp_path / 'c'}", f"data.root={tmp_path}", "num_samples=20", "sampler.num_steps=1")
    with pytest.raises(Refusal, match="features.weights must be the path of weights-inception-2015-12-05") as refusal:
        evaluate(configure(*few, command="evaluate"))
    assert "\n" not in str(refusal.value)


def test_other_metrics_of_the_same_protocol_join_the_file(configure, smoke):
    for metrics in ("[fid]", "[kid]"):
        evaluate(
            configure(
                f"ckpt={smoke}", "num_samples=20", "sampler.num_steps=2", f"metrics={metrics}", command="evaluate"
            )
        )
    [file] = (smoke / "evaluation").glob("*.json")
    assert {"fid", "kid", "kid_std", "accuracy"} <= json.loads(file.read_text())["metrics"].keys()
    evaluate(configure(f"ckpt={smoke}", "num_samples=20", "sampler.num_steps=2", "seed=5", command="evaluate"))
    assert len(list((smoke / "evaluation").glob("*.json"))) == 2


def test_a_checkpoint_does_not_decide_which_folders_are_made(configure, smoke, tmp_path):
    file = smoke / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(file, weights_only=True)
    checkpoint["config"]["data"] |= {"_target_": "ddpm_lightning.data.mnist.MNIST", "root": str(tmp_path / "chosen")}
    torch.save(checkpoint, file)
    with pytest.raises(Refusal, match="data.root must be given: the checkpoint was trained on data in .*chosen"):
        evaluate(configure(f"ckpt={smoke}", "num_samples=20", command="evaluate"))
    assert not (tmp_path / "chosen").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["metrics=[fid,bleu]"], "metrics=.*must be a list of some of fid, kid, is, prc, memorisation"),
        (["features=inception", "features.weights=nowhere"], "features.weights must be the path of"),
        (["sampler.num_steps=500"], r"sampler.num_steps must lie in \[1, 100\]"),
        (["num_samples=9"], r"num_samples=9: must be an integer in \[10, "),
    ],
)
def test_impossible_values_are_refused(configure, smoke, overrides, message):
    with pytest.raises(Refusal, match=message):
        evaluate(configure(f"ckpt={smoke}", *overrides, command="evaluate"))


def test_an_evaluation_asks_for_every_class_in_turn_and_compares_with_the_training_split(
    configure, smoke, monkeypatch, digits
):
    asked = []

    def copies(session, seeds, labels):
        asked.extend(labels)
        yield digits.split("train").images[: len(labels)]

    monkeypatch.setattr(module, "generate_uint8", copies)
    cfg = configure(f"ckpt={smoke}", "num_samples=25", "metrics=[memorisation]", command="evaluate")
    assert evaluate(cfg) == 0
    assert asked == [i % 10 for i in range(25)]
