import pickle

import pytest
import torch

from ddpm_lightning.checkpoint import (
    AtomicCheckpointIO,
    build_from_file,
    find_checkpoint,
    load_denoiser,
    read_checkpoint,
)
from ddpm_lightning.diffusion.schedules.base import NoiseSchedule
from ddpm_lightning.diffusion.schedules.linear import LinearSchedule

SCHEDULE = "ddpm_lightning.diffusion.schedules.linear.LinearSchedule"


class Malicious:
    """Runs code when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        import os

        return (os.mkdir, (str(self.path),))


def test_a_malicious_pickle_is_refused_and_nothing_runs(tmp_path):
    trap = tmp_path / "trap"
    file = tmp_path / "evil.ckpt"
    torch.save({"state_dict": {}, "config": Malicious(trap), "global_step": 1}, file)
    with pytest.raises(ValueError, match="can't be read safely"):
        load_denoiser(file)
    assert not trap.exists()
    torch.load(file, weights_only=False)  # the trap does work
    assert trap.exists()


@pytest.mark.parametrize("content", [b"", b"no checkpoint", pickle.dumps({"a": 1}), b"PK\x03\x04" + b"\0" * 50])
def test_files_that_are_no_checkpoints_are_refused(tmp_path, content):
    file = tmp_path / "x.ckpt"
    file.write_bytes(content)
    with pytest.raises(ValueError, match="ckpt must be a checkpoint that this project wrote") as error:
        read_checkpoint(file)
    assert "\n" not in str(error.value)


def test_foreign_checkpoints_are_refused(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "x.ckpt")
    with pytest.raises(ValueError, match="lacks config"):
        load_denoiser(tmp_path / "x.ckpt")


@pytest.mark.parametrize("config", [[1], None, {"model": [1]}])
def test_checkpoints_with_a_broken_configuration_are_refused(tmp_path, config):
    torch.save({"state_dict": {}, "config": config, "global_step": 1, "images_seen": 1}, tmp_path / "x.ckpt")
    torch.save([1, 2], tmp_path / "y.ckpt")
    for name, lacks in (("x", "config.data"), ("y", "state_dict")):
        with pytest.raises(ValueError, match=f"which lacks {lacks}"):
            load_denoiser(tmp_path / f"{name}.ckpt")


def test_a_truncated_checkpoint_is_refused(tmp_path):
    torch.save({"state_dict": {"a": torch.randn(1000)}, "config": {}, "global_step": 1}, tmp_path / "x.ckpt")
    whole = (tmp_path / "x.ckpt").read_bytes()
    (tmp_path / "x.ckpt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="can't be read safely"):
        read_checkpoint(tmp_path / "x.ckpt")


def test_a_file_can_name_this_packages_classes_of_the_right_kind():
    schedule = build_from_file({"_target_": SCHEDULE, "num_steps": 7}, NoiseSchedule)
    assert isinstance(schedule, LinearSchedule)
    assert schedule.num_steps == 7


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "subprocess.run",
        "ddpm_lightning.images.os.remove",
        "ddpm_lightning.checkpoint.torch.load",
        "ddpm_lightning.nn.unet.UNet",
        "ddpm_lightning.diffusion.schedules.base.check_num_steps",
        "",
        None,
    ],
)
def test_a_file_can_name_nothing_else(target):
    with pytest.raises((ValueError, ImportError), match="ckpt names|No module named"):
        build_from_file({"_target_": target, "num_steps": 7}, NoiseSchedule)


def test_an_interrupted_write_leaves_the_old_file_whole(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": 1}, path)

    def half(content, file):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError, match="disk full"):
        AtomicCheckpointIO().save_checkpoint({"step": 2}, path)
    monkeypatch.undo()
    assert torch.load(path, weights_only=True) == {"step": 1}


def test_a_run_folder_stands_for_its_last_checkpoint(tmp_path):
    file = tmp_path / "checkpoints" / "last.ckpt"
    file.parent.mkdir()
    file.touch()
    assert find_checkpoint(tmp_path) == find_checkpoint(file.parent) == find_checkpoint(file) == file
    with pytest.raises(FileNotFoundError, match="ckpt must be a checkpoint file"):
        find_checkpoint(tmp_path / "nowhere")
