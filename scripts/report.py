"""Write ``report.md`` into the folder of a run, finished or not: ``python scripts/report.py runs/digits``."""

import argparse
from pathlib import Path

from ddpm_lightning.runs.refusal import Refusal

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="+", help="a run folder, such as runs/digits")
    folders = parser.parse_args().folder
    from ddpm_lightning.runs.report import write_report  # imports torch: only now, so that --help is quick

    try:
        for folder in folders:
            print(write_report(folder))
    except Refusal as refusal:
        parser.exit(2, f"{parser.prog}: {' '.join(str(refusal).split())}\n")
