import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from ddpm_lightning.runs.refusal import CONF

ROOT = CONF.parent

# one thread: two beside a busy neighbour can be many times slower
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What commands keep for the user goes where the tests are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def configure(tmp_path: Path) -> Callable[..., DictConfig]:
    """The configuration of a command, as Hydra would hand it over."""

    def configured(*overrides: str, command: str = "train", output_dir: str = "run") -> DictConfig:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            folder = [f"output_dir={tmp_path / output_dir}"] if command == "train" else []
            return compose(command, overrides=[*folder, *overrides])

    return configured


@pytest.fixture
def script(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a script in an empty folder, as a user would."""

    def run(*arguments: str, check: int | None = 0, timeout: int = 240, **env: str) -> subprocess.CompletedProcess[str]:
        name, *rest = arguments
        command = [sys.executable, str(ROOT / "scripts" / name), *rest]
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1", **env},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if check is not None:
            assert done.returncode == check, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    return run


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file like the published one of Inception, with random weights."""
    import torch_fidelity.feature_extractor_inceptionv3 as library

    class Unloaded(library.FeatureExtractorInceptionV3):
        def load_state_dict(self, state: Any) -> None:
            return None

    path = tmp_path_factory.mktemp("weights") / "random.pth"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library, "load_state_dict_from_url", lambda *args, **kwargs: {})
        torch.save(Unloaded("x", ["2048"]).state_dict(), path)
    return path


@contextmanager
def stopped_after_a_step() -> Iterator[None]:
    """Runs within are told to stop after their first step, as by SIGTERM."""
    from ddpm_lightning.callbacks.last_checkpoint import LastCheckpoint

    original = LastCheckpoint.on_train_batch_end

    def stopping(self: Any, trainer: Any, *arguments: Any) -> None:
        self.received = 15 if trainer.global_step == 1 else None
        original(self, trainer, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LastCheckpoint, "on_train_batch_end", stopping)
        yield


def group_options(group: str) -> list[str]:
    """The names of a configuration group's options."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


class GaussianDenoiser:
    """E[x_0 | x_t] for data N(mean, variance), in closed form."""

    def __init__(self, schedule: Any, variance: float, mean: float = 0.0) -> None:
        self.schedule = schedule
        self.variance = variance
        self.mean = mean

    def __call__(self, x_t: torch.Tensor, t: Any, label: Any = None) -> torch.Tensor:
        alpha, sigma = self.schedule(t).like(x_t)
        gain = alpha * self.variance / (alpha**2 * self.variance + sigma**2)
        return self.mean + gain * (x_t - alpha * self.mean)
