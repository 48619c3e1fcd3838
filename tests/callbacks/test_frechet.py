"""The in-training distance, against the evaluation's own and torch-fidelity's; and the checkpoint kept by it."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from conftest import stopped_after_a_step
from torch_fidelity import calculate_metrics

from ddpm_lightning.callbacks.ema import EMA
from ddpm_lightning.callbacks.frechet import FrechetDistance, _Stopping
from ddpm_lightning.callbacks.last_checkpoint import LastCheckpoint
from ddpm_lightning.data.resident import LabelledImages
from ddpm_lightning.diffusion.denoiser import Denoiser
from ddpm_lightning.diffusion.parameterization import Epsilon
from ddpm_lightning.diffusion.samplers.ddim import DDIMSampler
from ddpm_lightning.diffusion.schedules.linear import LinearSchedule
from ddpm_lightning.evaluation.features import Inception
from ddpm_lightning.generation import generate
from ddpm_lightning.images import to_uint8
from ddpm_lightning.nn.unet import UNet
from ddpm_lightning.runs.curves import curve, read_log
from ddpm_lightning.runs.evaluate import evaluate
from ddpm_lightning.runs.refusal import Refusal
from ddpm_lightning.runs.train import train

SMOKE = (
    *("experiment=smoke", "callbacks.progress=null", "+trainer.enable_progress_bar=false", "callbacks.samples=null"),
    *("trainer.accelerator=cpu", "logger.tensorboard=null", "callbacks.ema.decay=0.9"),
)
EVERY_10 = ("callbacks.distance.every_n_train_steps=10", "callbacks.distance.num_samples=51")
EVERY_10 += ("callbacks.distance.seed=3",)  # whose label is 3
BATCHES = "callbacks.distance.batch_size=16"


def final(folder, name="last"):
    return torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)


def make(images, features):
    """What the callback needs of a run: a colour network, its averages, and the training images."""
    net = UNet(8, 3, base_channels=8, channel_mults=(1,), attention_resolutions=(), num_classes=None)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    denoiser = Denoiser(net, LinearSchedule(20), Epsilon(), (3, 8, 8))
    module = SimpleNamespace(denoiser=denoiser, device=torch.device("cpu"), num_classes=None, training=True)
    module.eval, module.train = denoiser.eval, denoiser.train
    data = SimpleNamespace(split=lambda split: LabelledImages(images, None), image_shape=(3, 8, 8))
    strategy = SimpleNamespace(reduce_boolean_decision=lambda mine, all: mine)
    trainer = SimpleNamespace(callbacks=[LastCheckpoint("x", 1)], global_rank=0, world_size=1, datamodule=data)
    trainer.strategy, trainer.precision_plugin = strategy, SimpleNamespace(forward_context=nullcontext)
    distance = FrechetDistance(DDIMSampler(2), 12, 5, 1, features=features)
    distance.prepare(data)
    return distance, trainer, module


class Images(torch.utils.data.Dataset):
    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return self.images[i]


@pytest.mark.slow
def test_in_inceptions_features_the_figure_is_torch_fidelitys_own(weights):
    training = torch.randint(0, 256, (16, 3, 8, 8), dtype=torch.uint8)
    features = Inception(str(weights), hash_of(weights))
    distance, trainer, module = make(training, features)
    found = distance.measure(trainer, module).item()
    made = to_uint8(torch.cat(list(generate(module.denoiser.eval(), DDIMSampler(2), (3, 8, 8), range(12)))))
    known = calculate_metrics(
        input1=Images(made),
        input2=Images(training),
        fid=True,
        cuda=False,
        save_cpu_ram=True,  # no workers
        cache=False,
        verbose=False,
        batch_size=12,
        feature_extractor_weights_path=str(weights),
    )
    # random weights make tiny features, and a figure of about 1e-13
    assert found == pytest.approx(known["frechet_inception_distance"], rel=1e-3, abs=0)


def hash_of(path):
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()


def in_the_evaluations_way(configure, run, weights="ema"):
    """The figure of a run's weights, by the command."""
    same = ("num_samples=51", "seed=3", "sampler.num_steps=5", "metrics=[fid]", "device=cpu")
    return evaluate(configure(f"ckpt={run}", f"weights={weights}", *same, command="evaluate"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*samples are fewer than 50000")
def test_a_run_logs_the_evaluations_figure_and_its_weights_are_the_same_as_without(configure, tmp_path):
    fast = (*SMOKE, "optimizer.lr=0.01", "trainer.log_every_n_steps=7")  # which is due at other steps
    train(configure(*fast, *EVERY_10, BATCHES, output_dir="with"))
    train(configure(*fast, output_dir="without"))
    logged = curve(read_log(tmp_path / "with"), "val/fid")
    assert logged.steps == [10, 20]
    assert logged.values[1] == pytest.approx(in_the_evaluations_way(configure, tmp_path / "with"), rel=1e-4)
    assert logged.values[1] != pytest.approx(in_the_evaluations_way(configure, tmp_path / "with", "raw"), rel=1e-2)
    ends = [final(tmp_path / folder) for folder in ("with", "without")]
    for part in ("state_dict", "ema", "optimizer_states"):
        assert flat(ends[0][part]) == flat(ends[1][part]), part
    assert ends[0]["callbacks"].keys() == ends[1]["callbacks"].keys()


def flat(node):
    """Containers with the bytes of their tensors."""
    if isinstance(node, torch.Tensor):
        return node.numpy().tobytes()
    if isinstance(node, dict):
        return {key: flat(value) for key, value in node.items()}
    return [flat(value) for value in node] if isinstance(node, list | tuple) else node


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*samples are fewer than 50000")
def test_two_processes_share_the_images_and_find_one_processs_figure(script, configure, tmp_path):
    arguments = (*SMOKE[:4], *SMOKE[5:], *EVERY_10, BATCHES, "trainer=ddp_cpu", "name=two")
    done = script("train.py", *arguments)
    logged = curve(read_log(tmp_path / "runs" / "two"), "val/fid").values
    assert len(logged) == 2
    assert logged[1] == pytest.approx(in_the_evaluations_way(configure, tmp_path / "runs" / "two"), rel=1e-4)
    assert done.stdout.count("compare it with itself alone") == 1


@pytest.fixture
def scripted(monkeypatch):
    """Runs in which the distances are these, by step; and the steps at which one was measured."""

    def script(distances):
        measured = []

        def measure(self, trainer, module):
            measured.append(trainer.global_step)
            return torch.tensor(distances[trainer.global_step])

        monkeypatch.setattr(FrechetDistance, "measure", measure)
        return measured

    return script


BEST = (*SMOKE, "callbacks.best.monitor=val/fid", "logger.csv=null", "callbacks.lr=null")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("every", "distances", "best"),
    [
        (5, {5: 3.0, 10: 1.0, 15: 2.0, 20: 4.0}, 10),  # at a validation
        (5, {5: 3.0, 10: 2.5, 15: 2.0, 20: 4.0}, 15),  # between two of them
        (20, {20: 1.0}, 20),  # of which the first has no distance yet
        (15, {15: 1.0}, 15),  # and the last an old one
    ],
)
def test_the_best_checkpoint_is_of_the_step_with_the_least_distance(
    configure, tmp_path, scripted, every, distances, best
):
    measured = scripted(distances)
    quick = ("trainer.accumulate_grad_batches=2", "trainer.val_check_interval=20", "callbacks.checkpoint.keep=0")
    train(configure(*BEST, *quick, f"callbacks.distance.every_n_train_steps={every}", output_dir="run"))
    assert measured == list(distances)
    kept = final(tmp_path / "run", "best")
    assert kept["global_step"] == best
    [state] = [state for name, state in final(tmp_path / "run")["callbacks"].items() if "val/fid" in name]
    assert state["best_model_score"] == distances[best]


@pytest.mark.slow
@pytest.mark.parametrize(("later", "best"), [(2.0, 1), (0.5, 3)])
def test_a_resumed_run_knows_its_best(configure, tmp_path, scripted, later, best):
    quick = (*BEST, "callbacks.distance.every_n_train_steps=1", "trainer.max_steps=3", "trainer.val_check_interval=2")
    measured = scripted({1: 1.0, 2: 3.0, 3: later})
    with stopped_after_a_step(), pytest.raises(SystemExit):
        train(configure(*quick))
    train(configure(*quick))
    assert measured == [1, 2, 3]
    assert final(tmp_path / "run", "best")["global_step"] == best


class Unneeded:
    """Features of images that no test looks at."""

    def fit(self, images, labels):
        pass

    def to(self, device):
        pass

    def __call__(self, images):
        return SimpleNamespace(features=images.flatten(1)[:, :4].float())


@pytest.mark.parametrize("rank", ["this", "another"])
def test_a_stop_abandons_the_drawing_at_once_on_all_ranks(rank):
    distance, trainer, module = make(torch.randint(0, 256, (9, 3, 8, 8), dtype=torch.uint8), Unneeded())
    assert distance.measure(trainer, module) > 0
    calls = []
    original = Denoiser.outputs
    ema = EMA()
    ema.averages = {"0.9999": {name: weight.detach() + 1 for name, weight in module.denoiser.named_parameters()}}
    trainer.callbacks.append(ema)
    weights = [weight.clone() for weight in module.denoiser.parameters()]

    def outputs(self, *args, **kwargs):
        calls.append(1)
        trainer.callbacks[0].received = 15 if rank == "this" else None
        return original(self, *args, **kwargs)

    trainer.strategy.reduce_boolean_decision = lambda mine, all: mine or bool(calls and rank == "another")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Denoiser, "outputs", outputs)
        with pytest.raises(_Stopping):
            distance.measure(trainer, module)
    assert len(calls) == (1 if rank == "this" else 2)  # of six: one for each of two moves of three batches
    assert module.denoiser.training
    assert all(map(torch.equal, weights, module.denoiser.parameters()))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (["num_samples=1"], "callbacks.distance.num_samples must be at least 2, got 1"),
        (["batch_size=0"], "callbacks.distance.batch_size must be at least 1, got 0"),
        (["seed=-1"], "callbacks.distance.seed must be at least 0, got -1"),
        (["every_n_train_steps=0"], "callbacks.distance.every_n_train_steps must be an integer of at least 1, or null"),
        (["every_n_epochs=often"], "callbacks.distance.every_n_epochs must be an integer of at least 1, or null for n"),
    ],
)
def test_what_makes_no_distance_is_refused(configure, tmp_path, override, said):
    with pytest.raises(Refusal, match=said):
        train(configure(*SMOKE, *(f"callbacks.distance.{key}" for key in override)))
    assert not (tmp_path / "run").exists()


def test_what_the_distance_needs_is_asked_for_before_the_run_starts(configure, tmp_path):
    with pytest.raises(
        Refusal, match="callbacks.best.monitor=val/fid: must be val/loss, or callbacks.distance.every_n"
    ):
        train(configure(*BEST))
    with pytest.raises(Refusal, match="features.weights must be the path of weights-inc.*, got nowhere"):
        train(configure(*SMOKE, *EVERY_10, "features=inception", "features.weights=nowhere"))
    assert not (tmp_path / "run").exists()
