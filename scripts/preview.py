"""Look at a data set as the network sees it: ``python scripts/preview.py data=cifar10``."""

import hydra
from omegaconf import DictConfig

from ddpm_lightning.runs.command import job, run


@hydra.main(version_base="1.3", config_path="../conf", config_name="preview")
@job
def main(cfg: DictConfig) -> None:
    from ddpm_lightning.runs.preview import preview  # imports torch: only now, so that --help is quick

    preview(cfg)


if __name__ == "__main__":
    run(main)
