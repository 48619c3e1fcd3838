"""How unlike two images look, by features of a network that was trained on photographs."""

from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from torch import Tensor

from ddpm_lightning.diffusion.denoiser import Denoiser
from ddpm_lightning.diffusion.loss import Term, Trial

NETS = ("vgg", "alex", "squeeze")
SIDE = 64  # pixels, to which smaller images are enlarged: the networks have no use for them


class Perceptual(Term):
    """``weight`` * alpha^2 * LPIPS between x_0 and its estimate, with torchmetrics' network.  Zhang et al. (2018),
    eq. 1.

    Where little of x_0 is left its estimate is a blur whatever the network does: hence alpha^2. ``net`` is "vgg",
    "alex" or "squeeze", ``weights`` a file with that torchvision network's state dict, or None for the download. Grey
    images are shown in all three channels.
    """

    def __init__(self, weight: float = 0.1, net: str = "vgg", weights: str | None = None) -> None:
        super().__init__()
        if not weight > 0:
            raise ValueError(f"weight must be above 0, got {weight}")
        if net not in NETS:
            raise ValueError(f"net must be one of {', '.join(NETS)}, got {net}")
        self.weight = weight
        # in a list, so that it is no part of the module: not trained, averaged, or saved with it
        self._lpips = [_lpips(net, weights)]

    def forward(self, denoiser: Denoiser, trial: Trial) -> Tensor:
        alpha = denoiser.schedule(trial.t).alpha
        estimate = trial.estimate(denoiser).clamp(-1, 1)
        shape = (len(estimate), 3, *estimate.shape[2:])
        lpips = self._lpips[0].to(estimate.device)
        lpips.resize = SIDE if min(shape[2:]) < SIDE else None
        # in float32: the features of nearly equal images differ by little
        with torch.autocast(estimate.device.type, enabled=False):
            unlike = lpips(estimate.expand(shape), trial.x_0.expand(shape))
        return self.weight * alpha**2 * unlike.flatten()


def _lpips(net: str, weights: str | None) -> Any:
    """torchmetrics' LPIPS network. Raises ValueError if the weights are not to be had."""
    from torchmetrics.functional.image.lpips import _LPIPS
    from torchvision import models

    name = {"vgg": "vgg16", "alex": "alexnet", "squeeze": "squeezenet1_1"}[net]
    enum = {"vgg": "VGG16_Weights", "alex": "AlexNet_Weights", "squeeze": "SqueezeNet1_1_Weights"}[net]
    url = getattr(models, enum).DEFAULT.url
    try:
        if weights is None:
            state = torch.hub.load_state_dict_from_url(url, map_location="cpu", progress=True, weights_only=True)
        else:
            state = torch.load(Path(weights).expanduser(), map_location="cpu", weights_only=True)
    except (OSError, URLError, RuntimeError) as error:
        raise ValueError(
            f"weights must be the path of torchvision's {name} weights ({url}) where they can't be downloaded,"
            f" got {weights} ({error})"
        ) from error
    backbone = getattr(models, name)(weights=None)
    try:
        backbone.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise ValueError(f"weights must be a state dict of torchvision's {name}, got {weights}") from error
    lpips = _LPIPS(pretrained=True, net=net, pnet_rand=True, use_dropout=True)  # type: ignore[arg-type]
    for part in lpips.net.children():
        for layers in part if isinstance(part, torch.nn.ModuleList) else [part]:
            for index, layer in layers.named_children():
                layer.load_state_dict(backbone.features[int(index)].state_dict())
    return lpips.eval().requires_grad_(False)
