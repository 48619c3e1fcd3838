from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ddpm_lightning.callbacks.ema import EMA, averaged


class Module(nn.Module):
    def __init__(self, value=1.0):
        super().__init__()
        self.denoiser = nn.Linear(1, 1, bias=False)
        self.set(value)

    def set(self, value):
        self.denoiser.weight.data.fill_(value)

    @property
    def value(self):
        return self.denoiser.weight.item()


class Run:
    """Optimizer steps that set the weight, as the trainer would announce them."""

    def __init__(self, ema, module):
        self.ema, self.module = ema, module
        self.trainer = SimpleNamespace(global_step=0, state=SimpleNamespace(fn="fit"), callbacks=[ema])
        ema.on_fit_start(self.trainer, module)

    def step(self, value, batches=1):
        for i in range(batches):
            if i == batches - 1:
                self.module.set(value)
                self.trainer.global_step += 1
            self.ema.on_train_batch_end(self.trainer, self.module, None, None, i)

    @property
    def average(self):
        return self.ema.averages[self.ema.names[0]]["weight"].item()


def test_a_thousand_updates_leave_the_known_share_of_the_start():
    module = Module(1.0)
    run = Run(EMA(0.999, warmup=False), module)
    module.denoiser.double()
    run.ema.averages = {"0.999": {"weight": torch.ones(1, 1, dtype=torch.float64)}}
    for _ in range(1000):
        run.step(0.0)
    assert run.average == pytest.approx(0.367695424771, rel=1e-9)  # 0.999^1000


def test_warm_up_follows_its_formula():
    run = Run(EMA(0.9999), Module(1.0))
    expected = 1.0
    for n in range(20):
        run.step(float(n))
        decay = (1 + n) / (10 + n)
        expected = decay * expected + (1 - decay) * n
        assert run.average == pytest.approx(expected, rel=1e-5)
    assert EMA(0.5).decay_at(1000, 0.5) == 0.5


def test_before_the_start_step_the_average_is_a_copy():
    run = Run(EMA(0.9, start_step=3, warmup=False), Module(1.0))
    for value in (5.0, 6.0, 7.0):
        run.step(value)
        assert run.average == value
    run.step(17.0)
    assert run.average == pytest.approx(8.0)


def test_accumulated_batches_are_one_update():
    once, accumulated = Run(EMA(0.9), Module()), Run(EMA(0.9), Module())
    for value in (2.0, 3.0, 5.0):
        once.step(value)
        accumulated.step(value, batches=4)
    assert once.average == accumulated.average
    assert accumulated.ema.num_updates == 3


def test_averages_are_in_place_for_validation_and_within_the_context():
    module = Module(1.0)
    run = Run(EMA(0.5, warmup=False), module)
    address = module.denoiser.weight.data_ptr()
    run.step(3.0)
    run.ema.on_validation_start(run.trainer, module)
    assert module.value == 2.0
    with averaged(run.trainer, module):
        assert module.value == 2.0
    assert module.value == 2.0  # the context leaves as it found
    run.ema.on_validation_end(run.trainer, module)
    assert module.value == 3.0
    with averaged(run.trainer, module):
        assert module.value == 2.0
    assert (module.value, run.average) == (3.0, 2.0)
    with pytest.raises(RuntimeError, match="planted"), averaged(run.trainer, module):
        raise RuntimeError("planted")
    assert module.value == 3.0
    run.ema.on_validation_start(run.trainer, module)
    run.ema.on_exception(run.trainer, module, RuntimeError())
    assert module.value == 3.0
    assert module.denoiser.weight.data_ptr() == address


def test_a_resumed_average_goes_on_bit_for_bit():
    whole, first = Run(EMA(0.99), Module()), Run(EMA(0.99), Module())
    values = torch.randn(10).tolist()
    for value in values:
        whole.step(value)
    for value in values[:4]:
        first.step(value)
    checkpoint = {}
    first.ema.on_save_checkpoint(first.trainer, first.module, checkpoint)
    resumed = EMA(0.99)
    resumed.on_load_checkpoint(first.trainer, first.module, checkpoint)
    second = Run(resumed, Module(values[3]))
    second.trainer.global_step = 4
    for value in values[4:]:
        second.step(value)
    assert second.average == whole.average


def test_no_checkpoint_is_written_with_the_averages_in_place():
    run = Run(EMA(0.9), Module())
    with averaged(run.trainer, run.module), pytest.raises(RuntimeError, match="in the module's place"):
        run.ema.on_save_checkpoint(run.trainer, run.module, {})


def test_without_averages_the_context_does_nothing():
    module = Module(4.0)
    with averaged(SimpleNamespace(callbacks=[]), module):
        assert module.value == 4.0


def test_several_averages_are_those_of_as_many_runs_and_each_can_be_put_in_place():
    several, alone = Run(EMA([0.9, 0.5]), Module()), [Run(EMA(decay), Module()) for decay in (0.9, 0.5)]
    for value in torch.randn(12).tolist():
        for run in (several, *alone):
            run.step(value)
    averages = {name: average["weight"].item() for name, average in several.ema.averages.items()}
    assert averages == {"0.9": alone[0].average, "0.5": alone[1].average}
    module, raw = several.module, several.module.value
    several.ema.on_validation_start(several.trainer, module)
    assert module.value == averages["0.9"]
    with averaged(several.trainer, module, "0.5"):
        assert module.value == averages["0.5"]
        with averaged(several.trainer, module, "raw"):
            assert module.value == raw
        assert module.value == averages["0.5"]
    assert module.value == averages["0.9"]
    several.ema.on_validation_end(several.trainer, module)
    assert module.value == raw
    assert {name: average["weight"].item() for name, average in several.ema.averages.items()} == averages


def test_several_averages_are_resumed_by_name_whatever_their_order():
    first = Run(EMA([0.9, 0.5]), Module())
    first.step(3.0)
    checkpoint, resumed = {}, EMA([0.5, 0.9])
    first.ema.on_save_checkpoint(first.trainer, first.module, checkpoint)
    resumed.on_load_checkpoint(first.trainer, first.module, checkpoint)
    again = Run(resumed, Module())
    assert again.ema.names == ["0.5", "0.9"]
    for name in again.ema.names:
        assert torch.equal(again.ema.averages[name]["weight"], first.ema.averages[name]["weight"])


@pytest.mark.parametrize(
    "settings", [{"decay": 1.0}, {"decay": -0.1}, {"decay": []}, {"decay": [0.9, 0.9]}, {"start_step": -1}]
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ValueError, match="must"):
        EMA(**settings)
