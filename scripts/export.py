"""Write a run's averaged weights alone, for sharing: ``python scripts/export.py runs/digits``."""

import argparse
from pathlib import Path

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ckpt", help="a run folder, or a checkpoint file")
    parser.add_argument("--weights", default="ema", help="ema, raw, or the decay of one of several averages")
    parser.add_argument("--to", type=Path, help="default: <run folder>/<weights>.safetensors")
    arguments = parser.parse_args()
    from ddpm_lightning.checkpoint import export, find_checkpoint  # imports torch: only now, so that --help is quick
    from ddpm_lightning.runs.sampling import run_folder

    try:
        file = find_checkpoint(arguments.ckpt)
        path = export(file, arguments.to or run_folder(file) / f"{arguments.weights}.safetensors", arguments.weights)
    except (OSError, ValueError) as error:
        parser.exit(2, f"{parser.prog}: {' '.join(str(error).split())}\n")
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB, of {file.stat().st_size / 1e6:.2f}; use it as ckpt={path}")
