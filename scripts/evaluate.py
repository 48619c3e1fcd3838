"""Score a trained model: ``python scripts/evaluate.py ckpt=runs/digits``."""

import hydra
from omegaconf import DictConfig

from ddpm_lightning.runs.command import job, run


@hydra.main(version_base="1.3", config_path="../conf", config_name="evaluate")
@job
def main(cfg: DictConfig) -> float:
    from ddpm_lightning.runs.evaluate import evaluate  # imports torch: only now, so that --help is quick

    return evaluate(cfg)


if __name__ == "__main__":
    run(main)
