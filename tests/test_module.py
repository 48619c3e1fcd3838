import math
from types import SimpleNamespace

import pytest
import torch
from conftest import GaussianDenoiser
from torch import nn

from ddpm_lightning.diffusion.denoiser import Denoiser
from ddpm_lightning.diffusion.distance import MSE
from ddpm_lightning.diffusion.loss import Denoising, Term
from ddpm_lightning.diffusion.parameterization import Epsilon
from ddpm_lightning.diffusion.schedules.linear import LinearSchedule
from ddpm_lightning.diffusion.timesteps import TrainingTimes, UniformTimesteps
from ddpm_lightning.diffusion.weighting import Uniform
from ddpm_lightning.lr_schedules import Constant, Cosine
from ddpm_lightning.module import DiffusionModule, total_steps


class Net(nn.Module):
    """The best noise estimate for N(0, 1) data, and a note of what it was asked."""

    def __init__(self, schedule, num_classes=None):
        super().__init__()
        self.num_classes = num_classes
        self.oracle = GaussianDenoiser(schedule, 1.0)
        self.weight = nn.Parameter(torch.ones(()))
        self.asked = []

    def forward(self, x_t, times, label):
        self.asked.append((times, label))
        return self.weight * self.oracle.schedule(times + 1).like(x_t).sigma * x_t


def make(num_classes=None, T=1000, **kwargs):
    schedule = LinearSchedule(T)
    denoiser = Denoiser(Net(schedule, num_classes), schedule, Epsilon(), (1, 4, 4))
    optimizer = {"optimizer": lambda p: torch.optim.SGD(p, lr=0.5), "lr_schedule": Constant()}
    settings = {"objective": {"denoising": Denoising(Uniform(), MSE())}, "timesteps": UniformTimesteps(), **optimizer}
    module = DiffusionModule(denoiser, **{**settings, **kwargs})
    module.log = lambda *args, **kwargs: None
    return module


def pretend(module, batches=0, rank=0, world_size=1):
    """Stand in for the trainer at a given batch of a given rank."""
    module._trainer = SimpleNamespace(
        fit_loop=SimpleNamespace(total_batch_idx=batches), world_size=world_size, global_rank=rank, global_step=batches
    )


@pytest.fixture(autouse=True)
def _restore(monkeypatch):
    monkeypatch.setattr(DiffusionModule, "global_rank", property(lambda self: self._trainer.global_rank))


BATCH = (torch.zeros(500, 1, 4, 4), torch.arange(500) % 3)


def test_the_loss_of_the_best_denoiser_is_the_closed_form():
    module = make()
    out = module.training_step((torch.randn(20_000, 1, 4, 4), torch.zeros(20_000)), 0)
    assert out["loss"].item() == pytest.approx(0.275513, rel=0.02)  # the mean of alpha_bar
    assert out["losses"].shape == out["t"].shape == (20_000,)


def test_labels_are_dropped_with_the_given_probability():
    module = make(num_classes=3, label_drop=0.2)
    module.training_step(BATCH, 0)
    (_, label), labels = module.denoiser.net.asked[-1], BATCH[1]
    assert 0.12 < (label == 3).float().mean() < 0.28
    assert torch.equal(label[label != 3], labels[label != 3])


def test_a_network_without_classes_gets_no_labels():
    module = make()
    module.training_step(BATCH, 0)
    assert module.denoiser.net.asked[-1][1] is None


def test_weights_of_the_times_enter_the_loss():
    class Heavy(UniformTimesteps):
        def forward(self, batch_size, num_steps, device):
            t, weight = super().forward(batch_size, num_steps, device)
            return TrainingTimes(t, 3 * weight)

    module = make()
    module.timesteps = Heavy()
    out = module.training_step(BATCH, 0)
    torch.testing.assert_close(out["loss"], 3 * out["losses"].mean())


def test_offset_noise_is_one_number_for_all_pixels_of_a_channel_and_is_to_be_predicted():
    seen = []

    class Spy(Term):
        def forward(self, denoiser, trial):
            seen.append(trial)
            return 0 * trial.output.flatten(1).mean(1)

    for strength in (0.0, 5.0):
        torch.manual_seed(3)
        make(objective={"spy": Spy()}, offset_noise=strength).training_step(
            (torch.zeros(40, 1, 4, 4), torch.zeros(40)), 0
        )
    offset = seen[1].noise.mean((2, 3))
    assert offset.std().item() == pytest.approx((25 + 1 / 16) ** 0.5, rel=0.3)
    within = seen[1].noise - offset[..., None, None]
    assert within.std().item() == pytest.approx((15 / 16) ** 0.5, rel=0.1)
    sigma = LinearSchedule()(seen[1].t).like(seen[1].noise).sigma
    torch.testing.assert_close(seen[1].x_t, sigma * seen[1].noise)  # of black images: all noise is seen


def test_input_perturbation_is_seen_and_not_to_be_predicted():
    seen = []

    class Spy(Term):
        def forward(self, denoiser, trial):
            seen.append(trial)
            return 0 * trial.output.flatten(1).mean(1)

    module = make(objective={"spy": Spy()}, input_perturbation=0.1)
    module.training_step((torch.zeros(400, 1, 4, 4), torch.zeros(400)), 0)
    [trial] = seen
    extra = trial.x_t / LinearSchedule()(trial.t).like(trial.x_t).sigma - trial.noise
    assert extra.std().item() == pytest.approx(0.1, rel=0.05)
    assert trial.noise.std().item() == pytest.approx(1, rel=0.05)


def test_timesteps_hear_the_losses_as_they_are_and_not_as_they_are_weighted():
    heard = []

    class Listening(UniformTimesteps):
        def forward(self, batch_size, num_steps, device):
            t, weight = super().forward(batch_size, num_steps, device)
            return TrainingTimes(t, 3 * weight)

        def update(self, t, losses):
            heard.append((t, losses))

    out = make(timesteps=Listening()).training_step(BATCH, 0)
    assert torch.equal(heard[0][1], out["losses"])
    torch.testing.assert_close(out["loss"], 3 * heard[0][1].mean())


def test_the_held_out_loss_does_not_depend_on_the_training_objective():
    class Nothing(Term):
        def forward(self, denoiser, trial):
            return 0 * trial.output.flatten(1).mean(1)

    images, found = torch.randn(50, 1, 4, 4), []
    for objective in (None, Nothing()):
        module = make(**({"objective": {"nothing": objective}} if objective else {}))
        pretend(module)
        module.validation_step((images, torch.zeros(50)), 0)
        found.append(module.val_loss.compute().item())
    assert found[0] == found[1] > 0


def draws(seed, batches, rank):
    module = make(seed=seed)
    pretend(module, batches, rank)
    module._trainer.global_step = 0  # the same for all batches of an accumulated step
    module.on_train_batch_start(BATCH, 0)
    return module.training_step(BATCH, 0)["t"]


def test_randomness_is_keyed_by_seed_batch_and_rank():
    first = draws(0, 0, 0)
    assert torch.equal(first, draws(0, 0, 0))
    for other in (draws(1, 0, 0), draws(0, 1, 0), draws(0, 0, 1)):
        assert (first == other).float().mean() < 0.02


@pytest.mark.parametrize(("T", "first", "last"), [(1000, 12, 987), (100, 1, 98), (10, 0, 9)])
def test_held_out_times_are_the_stated_ones_for_every_image(T, first, last):
    """0-based 12, 37, ..., 987 for T = 1000: the middles of 40 equal parts."""
    module = make(T=T, val_times=40)
    pretend(module)
    module.validation_step((torch.zeros(7, 1, 4, 4), torch.zeros(7)), 0)
    times = torch.stack([times for times, _ in module.denoiser.net.asked]).sort(0).values
    assert times.shape == (40, 7)
    assert (times == times[:, :1]).all()
    assert times[0, 0] == first
    assert times[-1, 0] == last
    if T == 1000:
        assert times[:, 0].tolist() == list(range(12, 1000, 25))


def test_fewer_held_out_times_are_spread_over_the_images():
    module = make(val_times=2)
    pretend(module)
    module.validation_step((torch.zeros(40, 1, 4, 4), torch.zeros(40)), 0)
    first, second = (times for times, _ in module.denoiser.net.asked)
    assert sorted(first.tolist()) == list(range(12, 1000, 25))
    assert ((first - second).abs() == 500).all()


def test_the_held_out_loss_is_the_same_each_time_and_near_its_closed_form():
    images, losses = torch.randn(500, 1, 4, 4), []
    for _ in range(2):
        torch.manual_seed(len(losses))  # the global state plays no part
        module = make(val_times=40)
        pretend(module)
        module.validation_step((images, torch.zeros(500)), 0)
        losses.append(module.val_loss.compute().item())
    assert losses[0] == losses[1]
    alpha_bar = LinearSchedule().alpha_bar[torch.arange(13, 1001, 25)]
    assert losses[0] == pytest.approx(alpha_bar.mean().item(), rel=0.02)


def test_held_out_images_keep_their_times_and_noise_however_they_are_batched_and_shared():
    images, seen = torch.randn(90, 1, 4, 4), []

    class Recorder(Net):
        def forward(self, x_t, times, label):
            seen.extend(zip(times.tolist(), (x_t.flatten(1).sum(1) * 1e4).round().tolist(), strict=True))
            return super().forward(x_t, times, label)

    found = []
    for batch_size, world_size in ((90, 1), (16, 1), (20, 2)):
        seen.clear()
        for rank in range(world_size):
            module = make(val_times=4)
            module.denoiser.net.__class__ = Recorder
            pretend(module, rank=rank, world_size=world_size)
            module.on_validation_epoch_start()
            for i, part in enumerate(images[rank::world_size].split(batch_size)):
                module.validation_step((part, torch.zeros(len(part))), i)
        found.append(sorted(seen))
    assert found[0] == found[1] == found[2]


def test_held_out_images_of_a_conditional_network_have_their_labels():
    module = make(num_classes=3)
    pretend(module)
    module.validation_step((torch.zeros(6, 1, 4, 4), torch.arange(6) % 3), 0)
    assert module.denoiser.net.asked[-1][1].tolist() == [0, 1, 2, 0, 1, 2]


def test_the_learning_rate_follows_its_schedule_and_a_resumed_run_takes_new_settings():
    def made(total):
        module = make(lr_schedule=Cosine(lr=0.5))
        module._trainer = SimpleNamespace(max_steps=total, max_epochs=-1)
        return module.configure_optimizers()

    run = made(10)
    optimizer, schedule = run["optimizer"], run["lr_scheduler"]["scheduler"]
    for step in range(10):
        assert schedule.get_last_lr()[0] == pytest.approx(0.25 * (1 + math.cos(math.pi * step / 10)))
        optimizer.step()
        schedule.step()
    longer = made(20)["lr_scheduler"]["scheduler"]
    longer.load_state_dict(schedule.state_dict())
    longer.step()
    assert longer.get_last_lr()[0] == pytest.approx(0.25 * (1 + math.cos(math.pi * 11 / 20)))


def test_the_length_of_a_run_counts_steps_or_epochs_whichever_ends_first():
    def length(max_steps, max_epochs, limit=1.0, accumulate=1):
        data = SimpleNamespace(num_batches=42)
        trainer = SimpleNamespace(max_steps=max_steps, max_epochs=max_epochs, datamodule=data)
        trainer.limit_train_batches, trainer.accumulate_grad_batches = limit, accumulate
        return total_steps(trainer)

    assert length(-1, -1) is length(-1, None) is None
    assert length(100, -1) == 100
    assert length(-1, 3) == 126
    assert length(100, 3) == 100
    assert length(100, 2) == 84
    assert length(-1, 3, accumulate=2) == 63
    assert length(-1, 3, limit=10) == 30
    assert length(-1, 3, limit=0.5) == 63


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"label_drop": 1.5}, r"label_drop must lie in \[0, 1\], got 1.5"),
        ({"val_times": 41}, r"val_times must lie in \[1, 40\], got 41"),
        ({"seed": -1}, "seed must lie in"),
        ({"offset_noise": -0.1}, "offset_noise must be at least 0, got -0.1"),
        ({"input_perturbation": -0.1}, "input_perturbation must be at least 0, got -0.1"),
        ({"objective": {}}, "objective must have at least one term"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        make(**settings)


def test_held_out_noise_differs_from_time_to_time():
    module, noises = make(val_times=2), []
    pretend(module)

    def note(net, args):
        x_t, times, _ = args  # of black images: noise alone
        noises.append(x_t / net.oracle.schedule(times + 1).like(x_t).sigma)

    module.denoiser.net.register_forward_pre_hook(note)
    module.validation_step((torch.zeros(7, 1, 4, 4), torch.zeros(7)), 0)
    assert (noises[0] - noises[1]).abs().amin(dim=(1, 2, 3)).max() > 1e-3


def test_each_validation_of_a_run_has_the_same_times():
    module = make()
    pretend(module)
    for _ in range(2):
        module.on_validation_epoch_start()
        module.validation_step((torch.zeros(7, 1, 4, 4), torch.zeros(7)), 0)
    first, second = (times for times, _ in module.denoiser.net.asked)
    assert torch.equal(first, second)
