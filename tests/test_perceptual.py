"""With random weights in torchvision's format: what LPIPS is worth with the real ones is for its authors to say."""

import pytest
import torch
from torch import nn
from torchvision import models

from ddpm_lightning.diffusion.denoiser import Denoiser
from ddpm_lightning.diffusion.loss import attempt
from ddpm_lightning.diffusion.parameterization import CleanImage
from ddpm_lightning.diffusion.schedules.linear import LinearSchedule
from ddpm_lightning.perceptual import Perceptual

SCHEDULE = LinearSchedule(100)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "alexnet.pth"
    torch.manual_seed(0)
    torch.save(models.alexnet(weights=None).state_dict(), path)
    return path


class Blend(nn.Module):
    """Knows x_0, and mixes in something else."""

    def __init__(self, x_0):
        super().__init__()
        self.x_0 = x_0
        self.share = nn.Parameter(torch.zeros(()))

    def forward(self, x_t, times, label):
        return self.x_0 + self.share * x_t


@pytest.mark.parametrize("channels", [1, 3])
def test_a_perfect_estimate_has_no_loss_and_any_other_a_gradient(weights, channels):
    term = Perceptual(0.5, "alex", str(weights))
    x_0 = torch.rand(4, channels, 32, 32) * 2 - 1
    net = Blend(x_0)
    denoiser = Denoiser(net, SCHEDULE, CleanImage(), x_0.shape[1:])
    t = torch.tensor([1, 20, 60, 100])
    assert term(denoiser, attempt(denoiser, x_0, t, torch.randn_like(x_0))).abs().max() < 1e-6
    net.share.data.fill_(0.2)
    losses = term(denoiser, attempt(denoiser, x_0, t, torch.randn_like(x_0)))
    assert losses.shape == (4,)
    assert (losses > 0).all()
    losses.sum().backward()
    assert net.share.grad.abs() > 0


def test_the_distance_is_torchmetrics_own_times_weight_and_signal(weights):
    from torchmetrics.functional.image.lpips import _LPIPS

    backbone = models.alexnet(weights=None)
    backbone.load_state_dict(torch.load(weights))
    reference = _LPIPS(pretrained=True, net="alex", pnet_rand=True, resize=64)
    own = [
        layer for name in ("slice1", "slice2", "slice3", "slice4", "slice5") for layer in getattr(reference.net, name)
    ]
    for layer, loaded in zip(own, backbone.features, strict=False):
        layer.load_state_dict(loaded.state_dict())
    x_0 = torch.rand(2, 3, 64, 64) * 2 - 1
    net = Blend(x_0)
    net.share.data.fill_(0.3)
    denoiser = Denoiser(net, SCHEDULE, CleanImage(), x_0.shape[1:])
    t = torch.tensor([5, 50])
    trial = attempt(denoiser, x_0, t, torch.randn_like(x_0))
    large = torch.rand(2, 3, 96, 96) * 2 - 1  # not shrunk, which would lose what LPIPS is for
    at = Denoiser(Blend(large), SCHEDULE, CleanImage(), large.shape[1:])
    at.net.share.data.fill_(0.3)
    seen = attempt(at, large, t, torch.randn_like(large))
    reference.resize = None
    with torch.no_grad():
        expected = SCHEDULE(t).alpha ** 2 * reference(seen.output.clamp(-1, 1), large).flatten()
        torch.testing.assert_close(Perceptual(1.0, "alex", str(weights))(at, seen), expected)
        expected = 0.5 * SCHEDULE(t).alpha ** 2 * reference(trial.output.clamp(-1, 1), x_0).flatten()
        torch.testing.assert_close(Perceptual(0.5, "alex", str(weights))(denoiser, trial), expected)


def test_its_network_is_neither_trained_nor_saved(weights):
    term = Perceptual(0.5, "alex", str(weights))
    assert not list(term.parameters())
    assert not term.state_dict()


def test_weights_that_are_not_to_be_had_are_refused_in_one_line(weights, tmp_path, monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("Name or service not known")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    for given, message in (
        (None, "weights must be the path of torchvision's vgg16 weights .*vgg16.* where they can't be downloaded"),
        (str(tmp_path / "none"), "weights must be the path of .*got .*none"),
        (str(weights), "weights must be a state dict of torchvision's vgg16, got"),
    ):
        with pytest.raises(ValueError, match=message) as refusal:
            Perceptual(0.1, "vgg", given)
        assert "\n" not in str(refusal.value)
    with pytest.raises(ValueError, match="net must be one of vgg, alex, squeeze, got resnet"):
        Perceptual(0.1, "resnet")
    with pytest.raises(ValueError, match="weight must be above 0"):
        Perceptual(0.0)


@pytest.mark.parametrize(("net", "make"), [("vgg", models.vgg16), ("squeeze", models.squeezenet1_1)])
def test_the_other_networks_load_their_own_files(net, make, tmp_path):
    with torch.device("meta"):
        shapes = make(weights=None).state_dict()
    # the classifiers' weights, most of vgg's, are not looked at; one number stands for them on the disk
    state = {
        key: torch.zeros(()).expand(value.shape) if "classifier" in key else torch.randn(value.shape) / 50
        for key, value in shapes.items()
    }
    torch.save(state, tmp_path / "weights.pth")
    term = Perceptual(1.0, net, str(tmp_path / "weights.pth"))
    first = next(p for name, p in term._lpips[0].net.named_parameters() if name.endswith("weight"))
    assert torch.equal(first, state["features.0.weight"])
