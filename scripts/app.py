"""A local page to sample in: ``python scripts/app.py runs``."""

import argparse
import sys
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description="Pick a run, a class, a sampler, and see the images come about.")
    parser.add_argument("folder", nargs="?", type=Path, default=Path("runs"), help="folder of runs (default: runs)")
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument("--device", default=None, help="cpu, cuda, mps (default: a GPU if there is one)")
    arguments = parser.parse_args()

    import torch  # only now, so that --help is quick

    from ddpm_lightning.runs.app import page
    from ddpm_lightning.runs.refusal import Refusal

    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        page(arguments.folder, device).launch(server_name="127.0.0.1", server_port=arguments.port)
    except (Refusal, OSError) as refusal:
        print(f"{Path(sys.argv[0]).name}: {refusal}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
