"""Draw images from a trained model: ``python scripts/sample.py ckpt=runs/digits``."""

import hydra
from omegaconf import DictConfig

from ddpm_lightning.runs.command import job, run


@hydra.main(version_base="1.3", config_path="../conf", config_name="sample")
@job
def main(cfg: DictConfig) -> None:
    from ddpm_lightning.runs.sample import sample  # imports torch: only now, so that --help is quick

    sample(cfg)


if __name__ == "__main__":
    run(main)
