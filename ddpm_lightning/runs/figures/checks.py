"""What an evaluation of images is refused, or warned of, before anything is drawn."""

import os
import warnings
from pathlib import Path

from omegaconf import DictConfig

from ddpm_lightning.evaluation.features import Features, Pixels
from ddpm_lightning.evaluation.fidelity import METRICS
from ddpm_lightning.runs.figures.reference import Reference
from ddpm_lightning.runs.figures.scores import by_class_counts
from ddpm_lightning.runs.figures.sides import Side
from ddpm_lightning.runs.refusal import Refusal
from ddpm_lightning.runs.sampling import Session, check_integer, plain
from ddpm_lightning.runs.sharing import check_devices

USUAL_SAMPLES = 50_000
LEAST_SAMPLES = 10  # the inception score has 10 splits, precision looks at 3 neighbours
FOR_STATISTICS = ("fid", "is")  # metrics that mean and covariance of the reference are enough for
BIASED = {"fid": "the Frechet distance upwards", "is": "the inception score downwards"}


def check_asked(cfg: DictConfig, session: Session | None, kind: str) -> None:
    """Refuse keys whose values make no sense, by themselves or beside each other; ``kind`` is that of the device."""
    metrics = plain(cfg.metrics)
    listed = isinstance(metrics, list) and metrics and all(metric in METRICS for metric in metrics)
    if metrics is not None and not listed:
        raise Refusal(f"metrics={metrics}: must be null, or a list of some of {', '.join(METRICS)}")
    if (session is None) == (cfg.images is None):
        raise Refusal(f"ckpt={cfg.ckpt}, images={cfg.images}: one of the two must be given, as what is scored")
    if "memorisation" in (metrics or []) and cfg.reference != "train":
        raise Refusal(f"metrics=[memorisation]: needs reference=train, the images to remember, got {cfg.reference}")
    for key in ("batch_size", "repeats"):
        check_integer(cfg, key, 1)
    if cfg.num_samples is not None:
        check_integer(cfg, "num_samples", LEAST_SAMPLES)
    if session is None and (cfg.repeats > 1 or cfg.keep_samples or cfg.devices > 1):
        raise Refusal("repeats, keep_samples, devices: must be 1, false and 1 for images=..., as nothing is generated")
    check_devices(cfg, kind)
    if cfg.export_statistics is not None:
        path = Path(str(cfg.export_statistics)).expanduser()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Refusal(f"export_statistics={path}: must be a file that can be written ({error})") from error
        if path.is_dir() or not os.access(path.parent, os.W_OK):
            raise Refusal(f"export_statistics={path}: must be a file that can be written")


def check_fit(cfg: DictConfig, side: Side, reference: Reference, features: Features) -> None:
    """Refuse metrics that the images, the reference or the features can't give."""
    if "is" in cfg.metrics and isinstance(features, Pixels):
        raise Refusal("metrics=[is]: needs features with classes: inception, classifier or conv_classifier")
    if reference.side is None:
        more = [metric for metric in cfg.metrics if metric not in FOR_STATISTICS]
        if more or cfg.classwise:
            asked = f"metrics={more}" if more else "classwise=true"
            raise Refusal(f"{asked}: needs reference images, and reference={cfg.reference} holds statistics alone")
        known = reference.features
        if known is None:
            warnings.warn(f"reference={cfg.reference}: does not say what it is of; the figure is as good", stacklevel=4)
        elif known.get("sha256") != features.protocol["sha256"]:
            other = f"{known.get('name')} sha256 {str(known.get('sha256'))[:8]}"
            raise Refusal(f"reference={cfg.reference}: must be of the same features, is of {other}")
    elif cfg.classwise:
        by_class_counts(side.labels, reference.side.labels, reference.side.class_names)


def warn(cfg: DictConfig, side: Side, reference: Reference) -> None:
    """Say what makes figures incomparable."""
    count = len(side.indices)
    biased = [BIASED[metric] for metric in cfg.metrics if metric in BIASED]
    if biased and count < USUAL_SAMPLES:
        few = f"{count} samples are fewer than {USUAL_SAMPLES}, which biases {' and '.join(biased)}"
        warnings.warn(f"{few}: compare with figures of as many alone", stacklevel=4)
    formats = "jpeg" in side.described.get("format", ""), "jpeg" in reference.described.get("format", "")
    if formats[0] != formats[1]:
        which = "what is scored comes" if formats[0] else "the reference comes"
        warnings.warn(f"{which} from JPEG files and the other side does not, which moves the figure", stacklevel=4)
