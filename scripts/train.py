"""Train a diffusion model: ``python scripts/train.py experiment=digits name=foo``."""

import hydra
from omegaconf import DictConfig

from ddpm_lightning.runs.command import job, run


@hydra.main(version_base="1.3", config_path="../conf", config_name="train")
@job
def main(cfg: DictConfig) -> float:
    from ddpm_lightning.runs.train import train  # imports torch: only now, so that --help is quick

    return train(cfg)


if __name__ == "__main__":
    run(main)
