"""What makes training fast, counted rather than timed: a busy neighbour changes no count."""

import gc
import os
import resource
import sys

import numpy as np
import psutil
import pytest
import torch
import torch.distributed as dist
from ddp_worker import joint_gradients, shared_gradients
from lightning.pytorch import Callback
from torch._dynamo.utils import counters
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.counting import READS, Operations, forward_flops, operations
from benchmarks.setting import Setting
from ddpm_lightning.data.resident import LabelledImages, TrainingLoader
from ddpm_lightning.nn.unet import UNet
from ddpm_lightning.runs import command  # noqa: F401  (its resolver, for configurations)
from ddpm_lightning.runs.allocator import spare_memory
from ddpm_lightning.runs.build import build

SMOKE = ("experiment=smoke", "trainer.accelerator=cpu", "callbacks.progress=null", "+trainer.enable_progress_bar=false")
BARE = ("logger.tensorboard=null", "logger.csv=null", "callbacks.lr=null", "callbacks.samples=null")


def fit(cfg, *watchers):
    """A run as train() makes it, with further callbacks; returns its trainer."""
    torch.set_num_threads(1)
    module, data = build(cfg, "module"), build(cfg, "data")
    callbacks, loggers = ([made for made in build(cfg, key).values() if made] for key in ("callbacks", "logger"))
    trainer = build(cfg, "trainer", callbacks=[*callbacks, *watchers], logger=loggers)
    data.trainer, trainer.datamodule = trainer, data
    trainer.fit(module, data)
    return trainer


class Watch(Callback):
    """Counts the operations of each training step, the callbacks' before it included."""

    def __init__(self):
        self.steps = []

    def on_train_batch_start(self, *_):
        self.counting = Operations()
        self.counting.__enter__()

    def on_train_batch_end(self, *_):
        self.counting.__exit__(None, None, None)
        self.steps.append(self.counting)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_training_step_reads_nothing_back(configure, precision):
    """With every callback that computes anything; but for the steps in which the loggers are due.

    (On a CPU .tolist() is not seen, which on a GPU would wait: for that there is the test on a GPU.)
    """
    watch = Watch()
    quick = ("trainer.max_steps=5", "trainer.log_every_n_steps=3", "trainer.val_check_interval=42")
    fit(configure(*SMOKE, *BARE, *quick, f"trainer.precision={precision}"), watch)
    reads = [counted.reads for counted in watch.steps]
    assert reads[:2] + reads[3:] == [0, 0, 0, 0]


def test_reads_are_counted_where_there_are_some():
    x = torch.ones(3)
    assert operations(lambda: (x.sum().item(), bool(x[0] > 0), float(x[1]))).reads == 3
    assert "_local_scalar_dense" in READS


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_training_step_on_a_gpu_never_waits_for_it(configure):
    class Strict(Callback):
        def on_train_batch_start(self, trainer, *_):
            if trainer.global_step in (3, 4):  # neither the first, which makes state, nor one that is logged
                torch.cuda.set_sync_debug_mode("error")

        def on_train_batch_end(self, *_):
            torch.cuda.set_sync_debug_mode("default")

    quick = ("trainer.accelerator=gpu", "trainer.max_steps=8", "trainer.log_every_n_steps=8")
    fit(configure(*SMOKE, *BARE, *quick, "trainer.precision=bf16-mixed", "trainer.val_check_interval=42"), Strict())


class Graphs(Callback):
    """How many graphs were compiled up to the end of each step."""

    def __init__(self):
        self.after = {}

    def on_train_batch_end(self, trainer, *_):
        self.after[trainer.global_step] = counters["stats"]["unique_graphs"]


@pytest.mark.slow
def test_a_compiled_run_keeps_its_graph_to_the_end(configure, monkeypatch):
    """Over two epochs, with validation in between: one graph for training, no break, no further one later."""
    torch.compiler.reset()
    counters.clear()
    original = torch.nn.Module.compile
    modes = []

    def eager(net, fullgraph, mode):
        modes.append(mode)
        original(net, fullgraph=fullgraph, backend="eager")

    monkeypatch.setattr(torch.nn.Module, "compile", eager)
    graphs = Graphs()
    quick = ("data.batch_size=128", "trainer.max_steps=20", "trainer.val_check_interval=5", "callbacks.held_out=null")
    trainer = fit(configure(*SMOKE, *BARE, *quick, "module.compile=true", "trainer.precision=bf16-mixed"), graphs)
    assert modes == ["default"]
    build(configure(*SMOKE, "module.compile=true", "module.compile_mode=reduce-overhead"), "module")
    assert modes[1:] == ["reduce-overhead"]
    assert trainer.current_epoch >= 1
    assert graphs.after[1] == graphs.after[4] == 1
    assert graphs.after[8] == graphs.after[20] <= 3  # those of validation, at its sizes
    assert not counters["graph_break"]
    assert all("_orig_mod" not in name for name in trainer.lightning_module.state_dict())
    torch.compiler.reset()


def test_compile_modes_are_checked(configure):
    with pytest.raises(Exception, match="compile_mode must be one of default, reduce-overhead, max-autotune, got fast"):
        build(configure(*SMOKE, "module.compile_mode=fast"), "module")


class Living(Callback):
    """Tensors and bytes that are there after some of the steps."""

    def __init__(self, every):
        self.every = every
        self.tensors, self.bytes = [], []

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step % self.every == 0:
            gc.collect()
            self.tensors.append(sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects()))
            self.bytes.append(psutil.Process(os.getpid()).memory_info().rss)


@pytest.mark.slow
def test_two_thousand_steps_leave_nothing_behind(configure):
    living = Living(every=500)
    quick = ("trainer.max_steps=2000", "trainer.log_every_n_steps=50", "trainer.val_check_interval=100000")
    small = ("data.batch_size=2", "data.device=cpu", "model.base_channels=4", "callbacks.checkpoint=null")
    fit(configure(*SMOKE, *BARE, *quick, *small, "callbacks.best=null"), living)
    assert len(set(living.tensors)) == 1
    assert living.bytes[-1] - living.bytes[1] < 8e6  # 8 bytes a step would be .01 MB, a kept batch of losses .4 MB


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_freed_memory_is_not_asked_for_anew():
    spare_memory()
    assert torch.utils.deterministic.fill_uninitialized_memory is False

    def faults():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        kept = [torch.zeros(5_000_000) for _ in range(10)]  # 200 MB
        del kept
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    settling = [faults(), faults()]
    assert max(faults(), faults(), faults()) < 20_000, settling  # of the 48 828 pages


def test_a_training_run_spares_its_memory(configure, tmp_path, monkeypatch):
    import ddpm_lightning.runs.train as module

    called = []
    monkeypatch.setattr(module, "spare_memory", lambda: called.append(1))
    module.train(configure(*SMOKE, *BARE, "trainer.max_steps=1", "resume=never"))
    assert called == [1]


def test_operations_do_not_depend_on_the_batch_and_flops_are_in_proportion():
    net = UNet(16, base_channels=16, channel_mults=(1, 2), attention_resolutions=(8,))

    def step(batch):
        return lambda: net(torch.zeros(batch, 3, 16, 16), torch.zeros(batch)).mean().backward()

    step(2)()
    counted = {batch: operations(step(batch)).count for batch in (2, 8, 32)}
    assert len(set(counted.values())) == 1
    flops = {}
    for batch in (1, 8):
        with FlopCounterMode(display=False) as counter:
            step(batch)()
        flops[batch] = counter.get_total_flops()
    assert flops[8] == 8 * flops[1]
    # forward, and backward for weights and for inputs, of which the first layer has none
    # (attention computes its weights once more in the backward pass)
    assert 2.9 < flops[1] / forward_flops(net, torch.zeros(1, 3, 16, 16)) < 3.1


def test_a_batch_takes_as_many_operations_from_a_large_set_as_from_a_small_one():
    def batch(count):
        images = torch.zeros(count, 3, 8, 8, dtype=torch.uint8)
        batches = iter(TrainingLoader(LabelledImages(images, torch.zeros(count)), 16, seed=0, flip=True))
        next(batches)
        return operations(lambda: next(batches)).count

    assert batch(100) == batch(10_000)


def test_a_mapped_set_of_a_gigabyte_is_not_read_at_the_start(tmp_path):
    np.lib.format.open_memmap(tmp_path / "set.npy", "w+", np.uint8, (100_000, 3, 64, 64)).flush()  # a hole on the disk
    process = psutil.Process()
    images = torch.from_numpy(np.load(tmp_path / "set.npy", mmap_mode="c"))
    before = process.memory_info().rss
    loader = TrainingLoader(LabelledImages(images, torch.zeros(len(images))), 64, seed=0, flip=True)
    next(iter(loader))
    assert process.memory_info().rss - before < 60e6  # the order of 100 000 images, and one batch


@pytest.mark.slow
@pytest.mark.skipif(not dist.is_gloo_available(), reason="needs gloo")
def test_two_processes_have_the_gradients_of_one_with_the_joint_batch(tmp_path):
    for shared, joint in zip(shared_gradients(tmp_path), joint_gradients(), strict=True):
        torch.testing.assert_close(shared, joint, rtol=1e-5, atol=1e-6)


def test_the_aims_hold_loosely_in_what_can_be_counted():
    """Memory that the backward pass keeps: at most half with recomputing."""
    from benchmarks.memory import peak
    from benchmarks.ours import bare

    setting = Setting(output=None, channels=32, batch=4)
    found = {}
    for recomputing in (False, True):
        step = bare(setting, "32-true", recomputing).step
        step()
        found[recomputing] = peak(step, setting)
    assert found[True] < 0.6 * found[False]
