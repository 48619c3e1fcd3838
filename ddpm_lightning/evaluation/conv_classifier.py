"""A convolutional classifier of the training split, whose features tell what its classes differ in."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from ddpm_lightning.evaluation.features import Extracted
from ddpm_lightning.evaluation.store import digest, replace_whole, user_cache

VERSION = 1  # of the network and its training
BATCH = 128
WIDTHS = (16, 32, 64, 128)


class ConvClassifier:
    """128 features of a network of four convolutions, the last but one of its layers, and its class logits.

    Trained on the CPU with one thread and fixed seeds, so that the same machine gives the same weights; then kept in
    ``cache``, None for the user's own, under a hash of the images, labels and settings. ``steps`` of batch 128, Adam
    at one cycle of learning rates.
    """

    def __init__(self, steps: int = 1500, cache: str | None = None) -> None:
        if steps < 10:
            raise ValueError(f"steps must be at least 10, got {steps}")
        self.steps = steps
        self.cache = Path(cache).expanduser() if cache else user_cache()
        self.protocol: dict[str, Any] = {"name": "conv_classifier", "layer": "128"}
        self.net = nn.Sequential()

    def fit(self, images: Tensor, labels: Tensor) -> None:
        classes = int(labels.max()) + 1
        if len(labels.unique()) < 2:
            raise ValueError("features must be inception for a set without classes: there is nothing to classify")
        seen = hashlib.sha256(images.numpy().tobytes() + labels.numpy().tobytes()).hexdigest()
        key = {"version": VERSION, "steps": self.steps, "shape": list(images.shape), "set": seen}
        path = self.cache / "classifiers" / f"{digest(key)[:16]}.safetensors"
        with _reproducibly():
            self.net = _network(images.shape[1], classes)
            if not self._restore(path, key):
                _train(self.net, images, labels, self.steps)
                path.parent.mkdir(parents=True, exist_ok=True)
                state = self.net.state_dict()
                replace_whole(path, lambda part: save_file(state, part, metadata={"key": json.dumps(key)}))
        self.net.eval().requires_grad_(False)
        weights = b"".join(tensor.numpy().tobytes() for tensor in self.net.state_dict().values())
        self.protocol["sha256"] = hashlib.sha256(weights).hexdigest()

    def _restore(self, path: Path, key: dict[str, Any]) -> bool:
        try:
            with safe_open(path, framework="pt") as file:
                if json.loads((file.metadata() or {}).get("key", "null")) != key:
                    return False
                self.net.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 - no dictionary
        except Exception:  # missing, or broken in any way: trained anew
            return False
        return True

    def to(self, device: torch.device) -> None:
        self.net.to(device)

    def __call__(self, images: Tensor) -> Extracted:
        device = next(self.net.parameters()).device
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            features = self.net[:-1](_scaled(images.to(device)))
            logits = self.net[-1](features)
        return Extracted(features.cpu(), logits.cpu(), logits.argmax(1).cpu())


def _network(channels: int, classes: int) -> nn.Sequential:
    """32x32 images at half the size after each convolution but the first."""
    layers: list[nn.Module] = []
    for i, width in enumerate(WIDTHS):
        stride = 1 if i == 0 else 2
        layers += [nn.Conv2d(channels, width, 3, stride, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


def _scaled(images: Tensor) -> Tensor:
    return images.float() / 127.5 - 1


def _train(net: nn.Sequential, images: Tensor, labels: Tensor, steps: int) -> None:
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.01, total_steps=steps)
    for _ in tqdm(range(steps), "Training the classifier", leave=False, disable=None):
        chosen = torch.randint(len(images), (BATCH,))
        loss = nn.functional.cross_entropy(net(_scaled(images[chosen])), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


@contextmanager
def _reproducibly() -> Iterator[None]:
    """Seeded, on one thread, with gradients; and the random state as it was."""
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]), torch.enable_grad(), torch.autocast("cpu", enabled=False):
        torch.manual_seed(0)
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
