import pytest
import torch
from omegaconf import OmegaConf

from ddpm_lightning.runs.precision import cpu_computes_in_bf16, fastest
from ddpm_lightning.runs.refusal import Refusal
from ddpm_lightning.runs.train import train

QUICK = (
    *("experiment=smoke", "trainer.precision=auto", "callbacks.samples=null", "callbacks.progress=null"),
    *("+trainer.enable_progress_bar=false", "logger.tensorboard=null", "trainer.accelerator=cpu"),
)


@pytest.fixture
def cpu(monkeypatch):
    """A processor with the given instructions, and no accelerator."""

    def with_instructions(*names):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(names, True), raising=False)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)

    return with_instructions


@pytest.mark.parametrize(
    ("instructions", "precision"),
    [(("avx512_bf16",), "bf16-mixed"), (("avx2", "amx_bf16"), "bf16-mixed"), (("avx2", "avx512_f"), "32-true")],
)
def test_auto_is_bf16_where_the_cpu_computes_in_it(cpu, instructions, precision):
    cpu(*instructions)
    assert fastest("auto") == fastest("cpu") == precision


@pytest.mark.parametrize("native", [True, False])
def test_auto_is_bf16_where_the_gpu_computes_in_it_and_does_not_emulate_it(cpu, monkeypatch, native):
    cpu("avx512_bf16")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or native)
    assert fastest("auto") == fastest("gpu") == ("bf16-mixed" if native else "32-true")
    assert fastest("cpu") == "bf16-mixed"


def test_a_torch_that_does_not_tell_counts_as_without(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert not cpu_computes_in_bf16()


@pytest.mark.slow
def test_a_run_keeps_the_precision_it_began_with_on_another_machine(configure, cpu, tmp_path, capsys):
    cpu("avx512_bf16")
    train(configure(*QUICK, "trainer.max_steps=2"))
    cpu()
    train(configure(*QUICK, "trainer.max_steps=4"))
    assert capsys.readouterr().out.count("precision bf16-mixed, by trainer.precision=auto") == 2
    assert OmegaConf.load(tmp_path / "run" / "config.yaml").trainer.precision == "bf16-mixed"
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 4
    assert checkpoint["config"]["trainer"]["precision"] == "bf16-mixed"
    with pytest.raises(Refusal, match="trainer.precision=32-true: must be bf16-mixed, with which"):
        train(configure(*QUICK, "trainer.max_steps=6", "trainer.precision=32-true"))
