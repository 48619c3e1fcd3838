"""What generated images are compared with: other images, or the statistics of such."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig

from ddpm_lightning.data.base import ImageDataModule
from ddpm_lightning.evaluation.features import Extracted, Features
from ddpm_lightning.evaluation.fidelity import Statistics
from ddpm_lightning.runs.figures.given import given_side
from ddpm_lightning.runs.figures.sides import Side
from ddpm_lightning.runs.refusal import Refusal

LEAST = 10
SAID = {"set", "count", "format", "sha256"}  # what the line of the protocol says of images


class Reference(NamedTuple):
    """Images, or the statistics of such; what is known of them; and of statistics the features they are of."""

    side: Side | None
    statistics: Statistics | None
    described: dict[str, Any]
    features: dict[str, Any] | None = None

    @property
    def sha256(self) -> str:
        return str(self.described.get("file", self.described)["sha256"])


class Real(NamedTuple):
    """Features of the reference, None where there are but statistics."""

    rows: Extracted | None
    statistics: Statistics


def find_reference(cfg: DictConfig, data: Callable[[], ImageDataModule]) -> Reference:
    """What ``reference`` names. Raises Refusal."""
    path = Path(str(cfg.reference)).expanduser()
    if path.suffix == ".npz" and path.is_file():
        try:
            found, about = Statistics.load(path)
        except KeyError:  # of images, perhaps
            pass
        except (OSError, ValueError) as mistake:
            raise Refusal(f"reference={path}: must be a file of images or of mu and sigma ({mistake})") from mistake
        else:
            return _of_file(path, found, about)
    side = given_side("reference", str(cfg.reference), data)
    if len(side.indices) < LEAST:
        raise Refusal(f"reference={cfg.reference}: must hold at least {LEAST} images, has {len(side.indices)}")
    return Reference(side, None, side.described)


def _of_file(path: Path, statistics: Statistics, about: Any) -> Reference:
    """Statistics, whose own hash is told beside what the file says of itself."""
    file = {"name": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    said = (
        about if isinstance(about, dict) and about.keys() >= SAID and isinstance(about.get("features"), dict) else None
    )
    if said is None:
        return Reference(
            None, statistics, {"set": path.name, "count": "?", "format": "statistics", **file, "file": file}
        )
    described = {name: value for name, value in said.items() if name != "features"}
    return Reference(None, statistics, {**described, "file": file}, said["features"])


def check_dimension(cfg: DictConfig, reference: Reference, features: Features, one: Any) -> None:
    """Refuse statistics of features of another length than those of ``one`` image (1, C, H, W)."""
    if reference.statistics is not None:
        wanted, found = features(one).features.shape[1], len(reference.statistics.mean)
        if wanted != found:
            raise Refusal(f"reference={cfg.reference}: must be of {wanted} features, has {found}")
