import pytest
import torch
from torch import nn

from ddpm_lightning.adversarial import Adversarial
from ddpm_lightning.diffusion.denoiser import Denoiser
from ddpm_lightning.diffusion.loss import attempt
from ddpm_lightning.diffusion.parameterization import CleanImage
from ddpm_lightning.diffusion.schedules.linear import LinearSchedule

SCHEDULE = LinearSchedule(100)


class Constant(nn.Module):
    def __init__(self):
        super().__init__()
        self.grey = nn.Parameter(torch.zeros(()))

    def forward(self, x_t, times, label):
        return self.grey.expand(x_t.shape)


def trial_of(net, count=64):
    denoiser = Denoiser(net, SCHEDULE, CleanImage(), (1, 8, 8))
    x_0 = 0.5 + 0.1 * torch.randn(count, 1, 8, 8)
    return denoiser, attempt(denoiser, x_0, torch.arange(count) + 1, torch.randn_like(x_0))


def test_a_new_discriminator_cannot_tell_and_its_loss_is_two():
    """Scores of 0: the hinge is 1 + 1, the denoiser's part 0; all times alpha^2."""
    denoiser, trial = trial_of(Constant())
    torch.testing.assert_close(Adversarial(1)(denoiser, trial), 2 * SCHEDULE(trial.t).alpha ** 2)


def test_each_part_leaves_the_others_parameters_alone():
    term, net = Adversarial(1, weight=0.5), Constant()
    nn.init.normal_(term.discriminator.score.weight)
    denoiser, trial = trial_of(net)
    term(denoiser, trial).sum().backward()
    both = {name: p.grad.clone() for name, p in term.discriminator.named_parameters()}
    towards = net.grey.grad.clone()
    # the discriminator's hinge alone
    term.zero_grad()
    real, fake = (term.discriminator(x) for x in (trial.x_0, trial.output.detach()))
    (SCHEDULE(trial.t).alpha ** 2 * (torch.relu(1 - real) + torch.relu(1 + fake))).sum().backward()
    for name, p in term.discriminator.named_parameters():
        torch.testing.assert_close(both[name], p.grad, rtol=1e-4, atol=1e-4)
    # the denoiser's part alone
    net.zero_grad()
    score = term.discriminator(net.grey.expand(trial.x_t.shape))
    (-0.5 * SCHEDULE(trial.t).alpha ** 2 * score).sum().backward()
    torch.testing.assert_close(towards, net.grey.grad, rtol=1e-4, atol=1e-5)


def test_it_drives_estimates_to_where_the_images_are():
    torch.manual_seed(0)
    term, net = Adversarial(1, weight=1.0, base_channels=8), Constant()
    optimizer = torch.optim.Adam([*term.parameters(), *net.parameters()], lr=5e-3)
    for _ in range(150):
        denoiser, trial = trial_of(net)
        optimizer.zero_grad()
        term(denoiser, trial).mean().backward()
        optimizer.step()
    assert 0.25 < net.grey.item() < 0.75


def test_estimates_beyond_black_and_white_are_judged_at_their_limits():
    term, net = Adversarial(1, weight=0.5), Constant()
    nn.init.normal_(term.discriminator.score.weight)
    found = []
    for grey in (1.0, 7.0):
        net.grey.data.fill_(grey)
        torch.manual_seed(0)
        denoiser, trial = trial_of(net)
        found.append(term(denoiser, trial))
    torch.testing.assert_close(*found)


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match="weight must be above 0, got 0.0"):
        Adversarial(1, 0.0)
    with pytest.raises(ValueError, match="base_channels must be at least 1, got 0"):
        Adversarial(1, 0.1, 0)
