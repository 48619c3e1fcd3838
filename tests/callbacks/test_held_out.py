from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from ddpm_lightning.callbacks.ema import EMA
from ddpm_lightning.callbacks.held_out import HeldOutByWeights
from ddpm_lightning.callbacks.overfit_check import OverfitCheck


class Module(torch.nn.Module):
    """Its loss is its weight, whatever the image."""

    validated_images = 0
    device = torch.device("cpu")

    def __init__(self):
        super().__init__()
        self.denoiser = torch.nn.Linear(1, 1, bias=False)
        self.denoiser.weight.data.fill_(2.0)
        self.logged = {}

    def held_out_losses(self, batch):
        yield self.denoiser.weight.item() * torch.ones(len(batch[0]))

    def log(self, name, value, **kwargs):
        self.logged[name] = value.item()


def make(reduce=lambda total, reduce_op: total):
    module, ema = Module(), EMA([0.9, 0.5])
    ema.averages = {name: {"weight": torch.full((1, 1), value)} for name, value in (("0.9", 5.0), ("0.5", 7.0))}
    batches = [(torch.zeros(3, 1, 2, 2), torch.zeros(3)), (torch.zeros(1, 1, 2, 2), torch.zeros(1))]
    trainer = SimpleNamespace(callbacks=[ema], val_dataloaders=batches, num_val_batches=[2])
    trainer.state = SimpleNamespace(fn="fit")
    trainer.precision_plugin = SimpleNamespace(val_step_context=nullcontext, forward_context=nullcontext)
    trainer.strategy = SimpleNamespace(batch_to_device=lambda batch: batch, reduce=reduce)
    return trainer, module, ema


def test_raw_weights_and_further_averages_are_measured_each_by_their_own_loss():
    trainer, module, ema = make()
    ema.on_validation_start(trainer, module)
    HeldOutByWeights().on_validation_epoch_end(trainer, module)
    assert module.logged == {"val/loss_raw": 2.0, "val/loss_0.5": 7.0}
    assert module.denoiser.weight.item() == 5.0  # the one that validates is in place as before


def test_devices_share_the_images_by_their_number():
    """Another device has seen one image, with a loss of 10."""
    trainer, module, _ = make(lambda total, reduce_op: total + torch.tensor([10.0, 1.0]))
    HeldOutByWeights().on_validation_epoch_end(trainer, module)
    assert module.logged["val/loss_raw"] == pytest.approx((4 * 2.0 + 10) / 5)


def test_whether_a_batch_is_learned_is_asked_of_the_averages(monkeypatch):
    trainer, module, _ = make()
    seen = []
    monkeypatch.setattr(
        "ddpm_lightning.callbacks.overfit_check.generate",
        lambda denoiser, *args, **kwargs: [seen.append(denoiser.weight.item()) or torch.zeros(3, 1, 2, 2)],
    )
    module.num_classes, module.denoiser.image_shape = None, (1, 2, 2)
    trainer.datamodule = SimpleNamespace(val_dataloader=lambda: trainer.val_dataloaders[:1])
    check = OverfitCheck(None)
    check.on_train_end(trainer, module)
    assert seen == [5.0]
    assert check.failures == ["the loss is 5.0000, not below 0.02"]
